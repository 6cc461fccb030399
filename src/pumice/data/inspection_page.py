"""What a stage trains on as one HTML page: nothing from elsewhere, no script, light and dark.

    [Inspected] + facts of the stage ──to_html──> one page, a section a forward pass, an article a sample

Every text on it comes from data that nobody vouches for: all of them are escaped, control characters become signs, and
the page forbids itself to load anything.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import get_args

import numpy as np

from pumice.chat import Owner
from pumice.config import MODULES, Recipe, Stage
from pumice.cores import usable_cores
from pumice.data.feed import Feed, open_feed, open_indexes, rendered
from pumice.data.index import Index
from pumice.data.inspection import Block, Inspected, Place, Token, inspect_feed, to_json
from pumice.data.inspection_figures import figure, safe
from pumice.vision.frames import VIDEO_PRESETS, VideoPolicy
from pumice.vision.layout import PRESETS, Policy

SHOWN = 12
"""Pictures of a sample that are shown; the rest is counted."""

OBJECTIVES = {
    "read": "patches name their characters; what is bold below has no loss in this stage",
    "align": "visual tokens name the LM tokens under them; what is bold below has no loss in this stage",
    "answer": "the next token, where it is bold below",
}
NEWLINES = {
    "one_token": "one newline",
    "grid": "a newline a row",
    "frame": "a newline a frame",
    "no_token": "no newline",
}


def main(recipe: Recipe, stage: Stage, count: int, data: Path, out: Path | None) -> None:
    """Write the page of a stage's first ``count`` samples to ``out``, or without it a JSON object a sample to stdout.

    Raises:
        PumiceError: what `open_feed` raises. A faulty sample is no error: its fault is shown.
    """
    from pumice.model.build import build_processor
    from pumice.pocket.parts import cache_dir

    def tell(name: str, done: int, total: int) -> None:
        print(f"{stage.name}: indexing {name} {done}/{total}", file=sys.stderr, flush=True)

    cores = usable_cores()
    cache = cache_dir() / "index"
    feed = open_feed(recipe, stage, build_processor(recipe.model), data, cache, cores, tell)
    found = inspect_feed(feed, count)
    if out is None:
        for one in found:
            print(json.dumps(to_json(one)), flush=True)
        return
    about = facts(recipe, stage, feed)
    if not rendered(stage):
        about += left_out(open_indexes(recipe, stage, feed.processor, data, cache, cores, None)[1])
    page = to_html(about, found)
    out.write_text(page, encoding="utf-8", errors="replace")
    print(out)


def facts(recipe: Recipe, stage: Stage, feed: Feed) -> list[tuple[str, str]]:
    """(what, how) of a stage, the recipe's name first and the stage's second."""
    processor, samples = feed.processor, feed.seen(feed.steps)
    rates = [f"{name} {stage.lr[name]:g}" for name in MODULES if stage.lr.get(name)]
    frozen = [name for name in MODULES if not stage.lr.get(name)]
    lora = "".join(f"; {m} low-rank, rank {c.rank}, alpha {c.alpha}" for m, c in stage.low_rank.items())
    step = f"{stage.batch} samples" if stage.batch else f"up to {stage.batch_tokens:,} tokens"
    pack = f"up to {stage.pack_tokens:,} tokens" if stage.pack_tokens else "a whole step"
    limit = f"{processor.max_tokens:,} tokens"
    left = "drawn again" if rendered(stage) else "left out"
    limit += {"skip": f"; longer ones are {left}", "cut": "; longer ones are cut"}[stage.over_length]
    if rendered(stage) and stage.max_views:
        limit += f"; those of more than {stage.max_views} views are drawn again"
    found = [
        ("recipe", recipe.name),
        ("stage", stage.name),
        ("objective", f"{stage.objective}: {OBJECTIVES[stage.objective]}"),
        ("data", ", ".join(f"{name} {amount:g}" for name, amount in stage.data.items())),
        ("steps", f"{feed.steps:,} of {step}, {samples:,} samples in all"),
        ("forward pass", f"{pack}, as one worker packs them"),
        ("learning rates", f"{', '.join(rates)}{lora}" + (f"; frozen: {', '.join(frozen)}" if frozen else "")),
        ("model", recipe.model.title),
        ("template", getattr(processor.template, "name", "its own")),
        ("layout", policy_text(processor.policy)),
    ]
    for name, policy in (("several pictures", processor.several), ("videos", processor.video)):
        if policy is not None:
            found.append((name, policy_text(policy)))
    found.append(("longest sample", limit))
    if stage.heldout and not rendered(stage):
        found.append(("held out", f"{stage.heldout:.1%} of every source"))
    return found


def left_out(indexes: Mapping[str, Index]) -> list[tuple[str, str]]:
    """(what, how) of the samples that no step trains on."""
    said = []
    for name, index in indexes.items():
        kinds, counts = np.unique(index.problem[index.problem != ""], return_counts=True)
        if len(kinds):
            why = ", ".join(f"{count:,} {kind}" for kind, count in zip(kinds, counts, strict=True))
            said.append(f"{counts.sum():,} of {len(index):,} in {name} ({why})")
    return [("left out", ", ".join(said) + "; pumice data index names them")] if said else []


def policy_text(policy: Policy | VideoPolicy) -> str:
    """A layout's name, if it has one, and what it does, in a line."""
    names = [name for name, known in {**PRESETS, **VIDEO_PRESETS}.items() if known == policy]
    parts = [f"{names[0]}: {policy.mode}" if names else policy.mode]
    parts.append(f"{policy.tile} px and {policy.side}x{policy.side} tokens a view")
    if isinstance(policy, VideoPolicy):
        most = f"{policy.frames} frames"
        parts.append(f"always {most}" if policy.force_sample else f"{policy.fps:g} frames a second, at most {most}")
        parts += [f"{policy.pool} pooling by {policy.stride}"] * (policy.stride > 1)
        parts.append(NEWLINES[policy.newline])
        return ", ".join(parts)
    if policy.grids:
        largest = max(policy.grids, key=math.prod)
        parts.append(f"{len(policy.grids)} grids of up to {largest[0]}x{largest[1]} tiles")
        parts.append(f"overview {policy.overview}")
    for name in ("newline", "unpad"):
        parts += [name] * getattr(policy, name)
    parts += [f"at most {policy.max_tiles} tiles of tokens"] * bool(policy.max_tiles)
    return ", ".join(parts)


def to_html(about: Sequence[tuple[str, str]], samples: Iterable[Inspected]) -> str:
    """The page of a stage's ``facts`` and of samples in the order of training."""
    title = f"{about[0][1]}, stage {about[1][1]}"
    rows, sections = [], []
    for place, run in groupby(samples, key=lambda one: (one.place.step, one.place.pack)):
        articles = []
        first: Place | None = None
        for one in run:
            first = first or one.place
            articles.append(_article(one))
            rows.append(_row(one))
        assert first is not None
        sections.append(
            f'<section id="p{place[0]}-{place[1]}">{_pass(first, len(articles))}{"".join(articles)}</section>'
        )
    listed = "".join(f"<dt>{safe(what)}</dt><dd>{safe(how)}</dd>" for what, how in about)
    names = ("sample", "source", "step", "pass", "tokens", "visual", "supervised", "")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return "\n".join([
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Pumice: {safe(title)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{safe(title)}</h1><dl>{listed}</dl>{_legend()}</header>",
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>',
        *sections,
        "</body></html>\n",
    ])  # fmt: skip


def _legend() -> str:
    owners = "".join(f'<span class="{owner}"><i>{owner}</i></span> ' for owner in get_args(Owner))
    return (
        f'<p class="strip">{owners}<span class="user"><em>576 visual</em></span> '
        '<span class="assistant"><b>learned</b></span></p><p class="note">A box is a token, a dot a part of a '
        "character. Lines part the tiles, a veil lies over what a layout drops. Steps and passes count from 0.</p>"
    )


def _pass(place: Place, shown: int) -> str:
    """Heading of a forward pass."""
    share = f"{place.samples:,} sample{'s' * (place.samples > 1)}"
    share += f", the first {shown} of them here" * (shown < place.samples)
    tokens = f", {place.tokens:,} tokens" * bool(place.tokens)
    return f"<h2>Step {place.step}, pass {place.pack} <small>of {place.packs}: {share}{tokens}</small></h2>"


def _row(one: Inspected) -> str:
    place = one.place
    numbers = (place.step, place.pack, one.tokens, one.visual, one.supervised)
    cells = "".join(f"<td>{number:,}</td>" for number in numbers)
    link = f'<a href="#n{place.number}">{safe(one.id or one.name)}</a>'
    return f'<tr><td>{link}</td><td>{safe(one.source)}</td>{cells}<td class="error">{safe(one.error)}</td></tr>\n'


def _article(one: Inspected) -> str:
    named = f" <small>{safe(one.name)}</small>" * (one.id not in ("", one.name))
    numbers = [f"{one.tokens:,} tokens", f"{one.visual:,} visual", f"{one.supervised:,} supervised"]
    numbers += [f"{one.views:,} view{'s' * (one.views > 1)}"] * bool(one.views)
    numbers += [f"cut from {one.whole:,} tokens"] * (one.tokens < one.whole)
    parts = [
        f'<article id="n{one.place.number}"><h3>{safe(one.id or one.name)}{named}</h3>',
        f'<p class="note">{safe(one.source)}: {", ".join(numbers)}</p>' if one.parts else "",
        f'<p class="error">{safe(one.error)}</p>' if one.error else "",
        '<div class="both">',
        f'<div class="pictures">{"".join(map(figure, range(SHOWN), one.pictures))}</div>' if one.pictures else "",
    ]
    if rest := one.pictures[SHOWN:]:
        tokens = sum(picture.layout.tokens for picture in rest)
        parts.append(f'<p class="note">and {len(rest)} more with {tokens:,} visual tokens</p>')
    if one.parts:
        parts.append(f'<div class="said"><div class="strip">{strip(one.parts)}</div>')
        parts.append(f"<details><summary>template text</summary><pre>{''.join(_written(one))}</pre></details></div>")
    return "".join(parts) + "</div></article>\n"


def strip(parts: Sequence[Token | Block]) -> str:
    """Tokens as <i>, learned ones as <b>, blocks as <em>, each run of one owner in a <span> of its class."""
    found = []
    for owner, run in groupby(parts, key=lambda part: part.owner):
        found.append(f'<span class="{owner}">')
        for part in run:
            if isinstance(part, Block):
                found.append(f"<em>{part.tokens:,} visual</em>")
            else:
                found.append(f"<b>{safe(part.text)}</b>" if part.learned else f"<i>{safe(part.text)}</i>")
        found.append("</span>")
    return "".join(found).replace("\n", "<s>\u21b5</s>\n")


def _written(one: Inspected) -> Iterator[str]:
    kinds = (picture.kind for picture in one.pictures)
    for owner, text in one.written:
        if text is None:
            yield f'<span class="{owner}"><em>{next(kinds, "picture")}</em></span>'
        else:
            yield f'<span class="{owner}">{safe(text)}</span>'


STYLE = """
:root { color-scheme: light dark; --rule: #8884; --note: #666; --error: #b3261e; --gap: #0003;
  --template: #e4e6e9; --system: #f3e2c0; --user: #cfe3fb; --assistant: #cdeccf; --visual: #e6d6f7; --veil: #fffc; }
@media (prefers-color-scheme: dark) { :root { --note: #aaa; --error: #ff8a80; --gap: #fff3;
  --template: #3a3e44; --system: #54431b; --user: #1d4066; --assistant: #1d4d28; --visual: #4b3168; --veil: #111c; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
small, .note { color: var(--note); font-weight: 400; } .note { font-size: .85rem; margin: .2rem 0; }
h1, h3 { overflow-wrap: anywhere; } h2 { margin: 2.5rem 0 0; } h3 { margin: 0; font-size: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: 1rem 0; }
dt { color: var(--note); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; }
:is(th, td):is(:nth-child(-n + 2), :last-child) { text-align: left; overflow-wrap: anywhere; min-width: 7rem; }
article { border-top: 1px solid var(--rule); margin-top: 1.2rem; padding-top: .8rem; }
.error { color: var(--error); overflow-wrap: anywhere; } p.error { margin: .4rem 0; font-weight: 600; }
.both { display: flex; flex-wrap: wrap; gap: .4rem 2rem; } .said { flex: 1 1 26rem; min-width: 0; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.2rem; margin: .6rem 0; }
figure { margin: 0; max-width: 100%; } figure p { margin: 0; font-size: .85rem; color: var(--note); }
figcaption { font-size: .85rem; max-width: 30rem; overflow-wrap: anywhere; }
.name { display: block; color: var(--note); }
svg { max-width: 100%; height: auto; margin-right: .5rem; vertical-align: top; outline: 1px solid var(--rule);
  background: repeating-linear-gradient(45deg, #8882 0 6px, #8884 6px 12px); }
line { stroke: #e0218a; stroke-width: 1.5px; vector-effect: non-scaling-stroke; filter: drop-shadow(0 0 1px #fff); }
.dropped { fill: var(--veil); fill-rule: evenodd; }
.strip, pre { font: 13px/1.75 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  margin: .5rem 0; }
.strip :is(i, b, em), pre span { font-style: normal; padding: .1em 0; border-radius: 2px; unicode-bidi: isolate; }
.strip :is(i, b) { box-shadow: inset -1px 0 var(--gap); }
.strip b { text-decoration: underline 2px; text-underline-offset: 3px; }
.strip :is(i, b):empty::before { content: "\\b7"; opacity: .5; }
.strip s { text-decoration: none; opacity: .5; }
:is(.strip, pre) em { font-style: normal; font-weight: 600; padding: .1em .6em; border-radius: 1em; }
.tokenizer > *, .template > *, pre :is(.tokenizer, .template) { background: var(--template); }
.system > *, pre .system { background: var(--system); } .user > *, pre .user { background: var(--user); }
.assistant > *, pre .assistant { background: var(--assistant); }
:is(.strip, pre) span > em { background: var(--visual); }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--note); font-size: .85rem; }
"""
