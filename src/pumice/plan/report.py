"""How plans are shown: a table with a column a model, and JSON with every number.

[Costs] + Device ──predict──> print_table · to_json
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pumice.plan.costs import Costs, filled
from pumice.plan.devices import BANDWIDTH_EFFICIENCY, COMPUTE_EFFICIENCY, Device, Times, fits, predict

Row = tuple[str, Callable[[Costs, Times], str]]


def scaled(value: float, unit: str) -> str:
    """Three significant digits with a decimal prefix: (8.82e9, "FLOPs") is "8.82 GFLOPs"."""
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {prefix}{unit}"
    return f"{_three(value)} {unit}".rstrip()


def binary(value: float) -> str:
    """Bytes in KiB, MiB or GiB, as memory is sold and cache is counted."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{value:.0f} B"


def weights(value: int) -> str:
    """Numbers of parameters, as the field writes them: 304 M, 6.74 B."""
    return scaled(value, "").replace("G", "B").strip()


def seconds(value: float) -> str:
    """Three significant digits in us, ms or s."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= 0.9995 * size:
            return f"{_three(value / size)} {unit}"
    return f"{_three(value / 1e-6)} us"


def _three(value: float) -> str:
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def grid(costs: Costs) -> str:
    """The tiles of a picture."""
    placed = costs.layout
    return f"{placed.cols}x{placed.rows} of {placed.tile} px" if placed else ""


def _map(costs: Costs) -> str:
    return f"{costs.layout.map[1]}x{costs.layout.map[0]}" if costs.layout else ""


def _filled(costs: Costs) -> str:
    return f"{filled(costs.layout):.0%}" if costs.layout else ""


PICTURE: tuple[Row, ...] = (
    ("tiles", lambda c, t: grid(c)),
    ("map of tokens", lambda c, t: _map(c)),
    ("share of the map that is picture", lambda c, t: _filled(c)),
    ("visual tokens of the picture", lambda c, t: f"{c.layout.tokens}" if c.layout else ""),
)
VIDEO: tuple[Row, ...] = (("visual tokens of the video", lambda c, t: f"{c.video.tokens}" if c.video else ""),)
UNTRAINED: Row = ("trained on videos", lambda c, t: "yes" if c.model.video else "no")
ROWS: tuple[tuple[Row, ...], ...] = (
    (
        ("views through the tower", lambda c, t: f"{c.views}"),
        ("tokens as the connector leaves them", lambda c, t: f"{c.unmerged}"),
        ("visual tokens", lambda c, t: f"{c.tokens}"),
    ),
    (
        ("parameters: tower", lambda c, t: weights(c.tower_parameters)),
        ("  connector", lambda c, t: weights(c.connector_parameters)),
        ("  language model", lambda c, t: weights(c.lm_parameters)),
        ("  all", lambda c, t: weights(c.parameters)),
    ),
    (
        ("FLOPs: tower", lambda c, t: scaled(c.tower_flops, "")),
        ("  connector", lambda c, t: scaled(c.connector_flops, "")),
        ("  prefill of the visual tokens", lambda c, t: scaled(c.prefill_flops, "")),
        ("  the same as 2 N T", lambda c, t: scaled(c.prefill_2nt, "")),
        ("  each token after them", lambda c, t: scaled(c.decode_flops, "")),
    ),
    (
        ("memory: weights", lambda c, t: binary(c.weight_bytes)),
        ("  KV cache of a token", lambda c, t: binary(c.kv_bytes_per_token)),
        ("  KV cache of the visual tokens", lambda c, t: binary(c.kv_bytes)),
    ),
    (
        ("predicted: tower and connector", lambda c, t: seconds(t.vision)),
        ("  prefill of the visual tokens", lambda c, t: seconds(t.prefill)),
        ("  each token after them", lambda c, t: seconds(t.decode)),
    ),
)


def print_table(plans: Sequence[Costs], device: Device, title: str) -> None:
    """The table on standard output; ``title`` says what is planned."""
    table = Table()
    table.add_column(Text(f"on {device.name}, {device.dtype}"))
    for plan in plans:
        table.add_column(Text(plan.model.name), justify="right")
    picture, video = plans[0].layout is not None, plans[0].video is not None
    first = (PICTURE if picture and video else PICTURE[:3] if picture else ()) + (VIDEO if picture and video else ())
    if video and not all(plan.model.video for plan in plans):
        first = (UNTRAINED, *first)
    times = [predict(plan, device) for plan in plans]
    for rows in ((*first, *ROWS[0]), *ROWS[1:]):
        for label, show in rows:
            table.add_row(label, *(show(plan, time) for plan, time in zip(plans, times, strict=True)))
        table.add_section()
    if not all(fits(plan, device) for plan in plans):
        table.add_row(f"fits into {device.memory / 1e9:.0f} GB", *("yes" if fits(p, device) else "no" for p in plans))
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: nothing needs to be folded there
        console.width = 80 + 20 * len(plans)
    # As Text, or rich would take brackets in a name for its markup.
    console.print(Text(title), table, Text(caption(device)), sep="\n")


def caption(device: Device) -> str:
    """Where the predicted times come from."""
    basis = (
        f"{scaled(device.flops, 'FLOP/s')} and {scaled(device.bandwidth, 'B/s')}, measured now"
        if device.measured
        else f"{COMPUTE_EFFICIENCY:.0%} of {scaled(device.flops, 'FLOP/s')} and {BANDWIDTH_EFFICIENCY:.0%} of "
        f"{scaled(device.bandwidth, 'B/s')}, the published peaks"
    )
    return (
        f"Times are predicted from {basis}.\n"
        "Not counted: text, norms, softmax, activations, decoding the file, resizing, launches."
    )


def to_json(plans: Sequence[Costs], device: Device, image: tuple[int, int] | None, frames: int) -> str:
    """Every number: counts, bytes, FLOPs, predicted seconds, the layouts and what was assumed."""
    body = {
        "image": image,
        "frames": frames,
        "device": asdict(device)
        | {"usable_flops": device.usable_flops, "usable_bandwidth": device.usable_bandwidth},
        "models": [_plain(plan, device) for plan in plans],
    }  # fmt: skip
    return json.dumps(body, indent=1)


def _plain(plan: Costs, device: Device) -> dict[str, Any]:
    counts = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in ("model", "layout", "video")}
    return {
        "model": plan.model.name,
        **counts,
        "parameters": plan.parameters,
        "layout": asdict(plan.layout) if plan.layout else None,
        "video": asdict(plan.video) if plan.video else None,
        "predicted_seconds": asdict(predict(plan, device)),
        "fits": fits(plan, device),
    }
