"""What a request costs and how its pictures are cut, from their Layouts; small pictures of its pages."""

from __future__ import annotations

from typing import Any

from pumice.serve.answers import Prompt
from pumice.serve.parts import Attachment
from pumice.types import Layout, Media
from pumice.vision.frames import sample_indices


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
            _medium_json(media, layout, source) | _times_json(media, prompt)
            for (media, layout), source in zip(laid.placed, prompt.opened.sources, strict=True)
        ],
    }


def previews_json(pages: list[tuple[Attachment, Media, str]]) -> dict[str, Any]:
    """The answer of POST /v1/previews."""
    return {
        "pages": [
            {"message": file.message, "part": file.part, "page": media.page, "image": picture}
            for file, media, picture in pages
        ]
    }


def _times_json(media: Media, prompt: Prompt) -> dict[str, Any]:
    """Seconds at which a video's frames are taken."""
    if media.kind != "video":
        return {}
    indices = sample_indices(media.frames, media.fps, prompt.model.processor.video_policy)
    return {"times": [round(index / media.fps, 3) for index in indices]}


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
