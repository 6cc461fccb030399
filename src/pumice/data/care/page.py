"""The findings of a check as one page: counts, balance, and each kind of pair side by side. No script, nothing loaded.

Findings ──to_html──> a page         Findings ──to_json──> an object for scripts
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import Any

from PIL import Image

from pumice.data.care.categories import paper_shares, paper_visual_shares
from pumice.data.care.check import DUPLICATE, PICTURE, TEXT, Findings, Pair, Place, drop_lines, sources_of
from pumice.data.care.overlap import COMMON, LONGEST, SHORTEST
from pumice.data.care.pictures import NEAR
from pumice.data.care.signatures import said
from pumice.data.care.texts import NEAR_TEXT
from pumice.data.inspection_figures import safe
from pumice.eval.report.page import facts, page, table
from pumice.types import Media, PumiceError
from pumice.vision.media import decode
from pumice.vision.pdf import render_page
from pumice.vision.video import read_frames

SHOWN = 24
"""Pairs of each kind on the page."""
WORDS = 400
"""Characters of a sample's text on the page."""
THUMB = 240
KINDS = {
    PICTURE: ("Pictures of a test set", "shows a picture of a test set"),
    TEXT: ("Texts of a test set", "repeats a test item's words"),
    DUPLICATE: ("Near-duplicates", "says nearly the same about the same pictures as an earlier sample"),
}
STYLE = """
:root { color-scheme: light dark; --rule: #8884; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--rule); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.facts td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem; }
@media (max-width: 40rem) { .pairs { grid-template-columns: 1fr; } }
article { border: 1px solid var(--rule); border-radius: .4rem; padding: .6rem; display: grid; gap: .6rem;
  grid-template-columns: 1fr 1fr; }
section > p { max-width: 46rem; }
figure { margin: 0; min-width: 0; } figure img { max-width: 100%; max-height: 15rem; border: 1px solid var(--rule); }
figcaption { font-size: .85rem; overflow-wrap: anywhere; white-space: pre-wrap; }
figcaption b { display: block; }
"""


def to_json(findings: Findings) -> dict[str, Any]:
    """All counts, thresholds, the balance, and every sample to drop."""
    pictures = {"shown": findings.pictures, "distinct": findings.distinct}
    problems = [(name, row, why) for name, one in findings.signatures.items() for row, why in one.problems()]
    return {
        "samples": {name: len(one) for name, one in findings.signatures.items()},
        "against": {name: len(one) for name, one in findings.tests.items()},
        "unreadable": [{"source": name, "row": row, "why": why} for name, row, why in problems],
        "pictures": pictures,
        "same_pictures_again": findings.again,
        "dropped": dict(findings.by_reason()),
        "in_test_sets": dict(sources_of(findings.pairs)),
        "common_ngrams": findings.common,
        "personal": dict(findings.personal()),
        "thresholds": {
            "picture_bits": {"of 64": NEAR[0], "of 256": NEAR[1]}, "text_bits": {"of 64": NEAR_TEXT},
            "ngram_words": {"most": LONGEST, "least": SHORTEST}, "common_ngram_samples": COMMON,
        },
        "balance": findings.balance().to_json(),
        "drop": drop_lines(findings),
    }  # fmt: skip


def summary(findings: Findings) -> list[tuple[str, str]]:
    """(what, how much), as the terminal and the page show it."""
    unreadable = sum(len(one.problems()) for one in findings.signatures.values())
    again = findings.pictures - findings.distinct
    bad = f"; {unreadable:,} unreadable" * bool(unreadable)
    lines = [
        ("samples", f"{findings.samples:,} in {', '.join(findings.signatures)}{bad}"),
        ("pictures", f"{findings.pictures:,}, {again:,} of them near-duplicates of another"),
        ("same pictures, other words", f"{findings.again:,} samples; they stay"),
    ]
    counts = findings.by_reason()
    for why, (_, what) in KINDS.items():
        if why == DUPLICATE or findings.tests:
            lines.append((f"to drop: {why}", f"{counts[why]:,} samples: {what}"))
    if findings.tests:
        sizes = ", ".join(f"{name} ({len(one):,} items)" for name, one in findings.tests.items())
        lines.insert(1, ("checked against", sizes))
        lines.append(("too common to count", f"{findings.common:,} shared n-grams, each in more than {COMMON} samples"))
    personal = findings.personal()
    if personal or any(one.table.num_rows and any(one.column("personal")) for one in findings.signatures.values()):
        found = ", ".join(f"{count:,} {kind}" for kind, count in personal.most_common())
        lines.append(("personal data", f"{found or 'none'}; pumice data clean --scrub replaces it"))
    return lines


def to_html(findings: Findings, command: str) -> str:
    """The page, in light or dark as the reader's system is. Pictures on it are small."""
    head = f"<h1>What this data repeats</h1><pre>$ {escape(command)}</pre>"
    body = [head, facts(summary(findings)), _method(findings), _balance(findings)]
    first = list(findings.dropped().values())
    for why, (title, what) in KINDS.items():
        mine = [pair for pair in first if pair.why == why]
        if mine:
            some = f", {SHOWN} of them here" * (len(mine) > SHOWN)
            shown = "".join(_pair(findings, pair) for pair in mine[:SHOWN])
            body.append(
                f"<section><h2>{title}</h2><p>{len(mine):,} samples{some}. The left one {what}.</p>"
                f'<div class="pairs">{shown}</div></section>'
            )
    return page("What this data repeats", STYLE, "\n".join(body))


def _method(findings: Findings) -> str:
    texts = (
        f" Texts are compared by {LONGEST}-grams of words; of shorter test items, down to {SHORTEST} words, all words "
        f"count. An n-gram in more than {COMMON} samples says nothing."
        if findings.tests
        else ""
    )
    return (
        f"<section><h2>How</h2><p>Two pictures are the same where at most {NEAR[0]} of 64 and {NEAR[1]} of 256 bits of "
        f"their hashes differ. Near texts differ in at most {NEAR_TEXT} of 64 bits of their simhashes.{texts}</p>"
        "</section>"
    )


def _balance(findings: Findings) -> str:
    balance = findings.balance()
    parts = []
    for place, (title, paper) in enumerate(
        (("Visual input", paper_visual_shares()), ("Instruction", paper_shares()), ("Response", {}))
    ):
        head = (title, "samples", "share", *["OneVision"] * bool(paper))
        rows = [
            [safe(name), f"{count:,}", f"{share:.1%}", *[f"{beside:.1%}" if beside is not None else ""] * bool(paper)]
            for name, count, share, beside in balance.rows(place, paper)
        ]
        parts.append(f"<h3>{title}</h3>{table(head, [rows])}")
    return (
        "<section><h2>Balance</h2>" + "".join(parts) + "<p>OneVision's shares of visual inputs are of its last stage, "
        "those of categories of its single-image stage. Fixed responses are a few words each; the paper gives no "
        "shares of them.</p></section>"
    )


def _pair(findings: Findings, pair: Pair) -> str:
    sides = ((pair.mine, "dropped"), (pair.other, "stays" if pair.why == DUPLICATE else "test set"))
    return f"<article>{''.join(_side(findings, place, role) for place, role in sides)}</article>\n"


def _side(findings: Findings, place: Place, role: str) -> str:
    name = f"{role}: {place.source}, row {place.row}"
    try:
        sample = findings.source(place).sample(place.row)
        pictures = [_picture(media) for media in sample.media[:2]]
    except PumiceError as error:
        return f"<figure><figcaption><b>{safe(name)}</b>{safe(str(error))}</figcaption></figure>"
    text = said(sample)
    text = text if len(text) <= WORDS else text[:WORDS] + "…"
    shown = "".join(f'<img src="data:image/webp;base64,{data}" alt="" loading="lazy">' for data in pictures)
    more = f"\n({len(sample.media) - 2} more pictures)" if len(sample.media) > 2 else ""
    return f"<figure>{shown}<figcaption><b>{safe(name)}</b>{safe(sample.id)}{more}\n{safe(text)}</figcaption></figure>"


def _picture(media: Media) -> str:
    """A small picture, page, or first frame in base64."""
    if media.kind == "video":
        image: Image.Image = next(iter(read_frames(media, [0])))
    elif media.kind == "page":
        w, h = (max(1, round(side * 2 * THUMB / max(media.size))) for side in media.size)
        image = render_page(media, (w, h))
    else:
        image = decode(media)
    image.thumbnail((2 * THUMB, 2 * THUMB))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=70)
    return base64.b64encode(buffer.getvalue()).decode()
