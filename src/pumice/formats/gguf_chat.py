"""A conversation format as llama.cpp runs it.

    texts with a marker for each picture ──parts of type image──> the format's own Jinja ──markers put back──> prompt

llama.cpp hands a template pictures as markers inside of texts, joined to what is said after them. A template of the
line would then write neither the newline after a picture, nor pictures before the words.
"""

from __future__ import annotations

from typing import Any

from pumice.chat_jinja import JinjaTemplate
from pumice.formats.export_files import IMAGE, chat_source
from pumice.templates import Template

_TYPED = "\ue000"
"""Stands for <image> that a person has typed, while the template writes its own."""

_BEFORE = """\
{%- set seen = namespace(marker='', messages=[], parts=[]) -%}
{%- for message in messages -%}
{%- set seen.parts = [] -%}
{%- set given = message['content'] -%}
{%- for part in ([{'type': 'text', 'text': given}] if given is string else given) -%}
{%- if part['type'] == 'text' -%}
{%- for text in part['text'].split('<__media') -%}
{%- set rest = text if loop.first else '<__media' ~ text -%}
{%- if not loop.first and '__>' in text -%}
{%- set seen.marker = '<__media' ~ text.split('__>')[0] ~ '__>' -%}
{%- set seen.parts = seen.parts + [{'type': 'image'}] -%}
{%- set rest = rest[seen.marker | length:] -%}
{%- endif -%}
{%- if rest -%}
{%- set seen.parts = seen.parts + [{'type': 'text', 'text': rest | replace('@image', '@typed')}] -%}
{%- endif -%}
{%- endfor -%}
{%- else -%}
{%- set seen.parts = seen.parts + [part] -%}
{%- endif -%}
{%- endfor -%}
{%- set seen.messages = seen.messages + [{'role': message['role'], 'content': seen.parts}] -%}
{%- endfor -%}
{%- set messages = seen.messages -%}
{%- set written -%}"""
_AFTER = """{%- endset -%}
{{- (written | replace('@image', seen.marker) if seen.marker else written) | replace('@typed', '@image') -}}"""
"""What stands before and after a format's own Jinja. A marker is <__media__>, or has a server's own letters in it."""


def llama_chat(template: Template | JinjaTemplate, tokenizer: Any) -> str:
    """The Jinja text for `tokenizer.chat_template`. What the tokenizer puts first by itself isn't in it: llama.cpp adds
    it, as transformers' processors do.

    Raises:
        PumiceError: as `chat_source`.
    """
    own = isinstance(template, JinjaTemplate)
    source, image = (template.source, template.image) if own else (chat_source(template, tokenizer), IMAGE)
    before, after = (text.replace("@image", image).replace("@typed", _TYPED) for text in (_BEFORE, _AFTER))
    return before + source + after
