"""``pumice plan``: models, a picture's size and a device in; a table, JSON or a drawing out.

    names ──find──> [Model] ──costs──> [Costs] + Device ──> table or JSON on stdout, PNG

Weights aren't opened; torch is imported only to measure this machine.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pumice.plan.costs import costs
from pumice.plan.devices import calibrate, find_device
from pumice.plan.find import find_model
from pumice.plan.report import print_table, to_json
from pumice.types import PumiceError

LARGEST = 100_000
"""Pixels a side of the largest picture: beyond it a typing mistake is more likely."""


def size(text: str) -> tuple[int, int]:
    """(width, height) of a text such as 1344x896.

    Raises:
        PumiceError: another form, or a side that no picture has.
    """
    found = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", text)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(1 <= side <= LARGEST for side in sides):
        raise PumiceError(f"--image {text!r}: expected WIDTHxHEIGHT in pixels, such as 1344x896, up to {LARGEST}")
    return sides


def main(
    models: Sequence[str],
    image: tuple[int, int] | None,
    video: int = 0,
    device: str | None = None,
    as_json: bool = False,
    png: Path | None = None,
) -> None:
    """Plan a picture of (width, height) pixels, a video of ``video`` frames, or both, for each of the models.

    ``device`` is a name of devices.DEVICES; None measures this machine for about a second. Prints the table, or JSON;
    with ``png`` also draws the tiling there.

    Raises:
        PumiceError: no or an unknown model, an unknown device, nothing to plan, a file that can't be written.
    """
    if png is not None and (png.is_dir() or not png.parent.is_dir()):
        raise PumiceError(f"{png}: can't be written; expected a file name in a folder that exists")
    if not models:
        raise PumiceError("no model to plan for; name one or more, such as onevision-7b, or folders")
    known = find_device(device) if device is not None else None
    found = [find_model(name) for name in models]
    plans = [costs(model, image, video, "bf16") for model in found]  # shows mistakes before anything is measured
    machine = known or calibrate()
    plans = [costs(model, image, video, machine.dtype) for model in found]
    if png is not None:
        from pumice.plan.drawing import draw

        draw(plans, machine).save(png, "PNG")
    if as_json:
        print(to_json(plans, machine, image, video))
    else:
        print_table(plans, machine, heading(image, video))


def heading(image: tuple[int, int] | None, frames: int) -> str:
    """What is planned."""
    parts = ([f"a picture of {image[0]}x{image[1]} pixels"] if image else []) + (
        [f"a video of {frames} frames"] if frames else []
    )
    return " and ".join(parts)
