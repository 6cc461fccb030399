"""What a request costs and how its pictures are cut, from their Layouts."""

from __future__ import annotations

from typing import Any

from pumice.serve.answers import Prompt
from pumice.serve.parts import Attachment
from pumice.types import Layout, Media


def tiling_json(prompt: Prompt) -> dict[str, Any]:
    """The answer of POST /tokenize; README.md says what each number means."""
    laid, limit = prompt.laid, prompt.model.limit
    return {
        "model": prompt.model.name,
        "count": len(laid.ids),
        "max_model_len": limit,
        "prompt_tokens": len(laid.ids),
        "visual_tokens": laid.visual,
        "max_tokens": limit,
        "media": [
            _medium_json(media, layout, source)
            for (media, layout), source in zip(laid.placed, prompt.opened.sources, strict=True)
        ],
    }


def _medium_json(media: Media, layout: Layout, source: Attachment) -> dict[str, Any]:
    return {
        "kind": media.kind,
        "message": source.message,
        "part": source.part,
        "page": media.page,
        "frames": layout.frames,
        "size": list(layout.size),
        "tokens": layout.tokens,
        "views": layout.views,
        "tiles": {
            "cols": layout.cols,
            "rows": layout.rows,
            "tile": layout.tile,
            "side": layout.side,
            "overview": layout.overview,
        },
        "resized": list(layout.resized),
        "offset": list(layout.offset),
        "keep": list(layout.keep),
        "map": list(layout.map),
        "newline": layout.newline,
    }
