"""A conversation template of `pumice.templates` as Jinja, for programs that read chat_template.jinja.

Template ──to_jinja──> Jinja text; rendered by transformers it gives the string of `pumice.chat.spans`
"""

from __future__ import annotations

import json
import re

from pumice.templates import Template

_SOURCE = """\
{%- set heads = @heads -%}
{%- set heads_after = @after_roles -%}
{%- set tails = @tails -%}
{%- set turn = namespace(before='', text='') -%}
@start
@default_system
{%- for message in messages -%}
{%- set role = message['role'] -%}
{%- if role not in heads -%}
{{- raise_exception('role ' ~ role ~ ' is not one of ' ~ (heads | join(', '))) -}}
{%- elif role == 'assistant' -%}
{%- if message['content'] is string -%}
{%- set turn.text = message['content'] -%}
{%- else -%}
{%- set turn.text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- endif -%}
{{- heads[role] ~ (@answer_prefix ~ turn.text if turn.text else '') ~ @answer_end -}}
{%- else -%}
{{- heads_after.get(turn.before ~ ' ' ~ role, heads[role]) -}}
{%- if message['content'] is string -%}
@string
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- @image -}}
{%- elif part['type'] == 'video' -%}
{{- @video -}}
@text
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- tails[role] -}}
{%- endif -%}
{%- set turn.before = role -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- heads['assistant'] -}}
{%- endif -%}
"""
"""Every tag strips the white space around it, so that only what stands in quotes is written."""


def to_jinja(template: Template, start: str = "", image: str = "<image>", video: str = "<video>") -> str:
    """The template as Jinja. ``start`` begins every conversation; ``image`` and ``video`` stand for a picture, a video.

    As in `spans`, a conversation without a system turn gets the default one. Contents are strings or lists of parts.
    """
    pieces = {
        "heads": template.heads,
        "after_roles": {" ".join(roles): head for roles, head in template.heads_after.items()},
        "tails": template.tails,
        "answer_prefix": template.answer_prefix,
        "answer_end": template.stop + template.after,
        "image": image + template.after_media,
        "video": video + template.after_media,
    }
    written = {name: json.dumps(piece) for name, piece in pieces.items()}  # a JSON text is a Jinja literal as well
    written["start"] = f"{{{{- {json.dumps(start)} -}}}}" if start else ""
    written["default_system"] = _default_system(template)
    said = not template.answers_only
    written["string"] = "{{- message['content'] -}}" if said else ""
    written["text"] = "{%- elif part['type'] == 'text' -%}\n{{- part['text'] -}}" if said else ""
    return re.sub("@([a-z_]+)", lambda found: written[found[1]], _SOURCE)


def _default_system(template: Template) -> str:
    if template.default_system is None:
        return ""
    turn = json.dumps(template.heads["system"] + template.default_system + template.tails["system"])
    return (
        "{%- if messages[0]['role'] != 'system' -%}\n"
        f"{{{{- {turn} -}}}}\n"
        "{%- set turn.before = 'system' -%}\n"
        "{%- endif -%}"
    )
