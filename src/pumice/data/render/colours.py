"""What colour a cut-out of an object is, if everybody would give it the same name."""

from __future__ import annotations

import numpy as np
from PIL import Image

HUES = (
    (14, "red"),
    (18, ""),
    (34, "orange"),
    (50, ""),
    (66, "yellow"),
    (85, ""),
    (150, "green"),
    (192, ""),
    (250, "blue"),
    (265, ""),
    (288, "purple"),
    (318, ""),
    (340, "pink"),
    (346, ""),
    (361, "red"),
)
"""Upper ends of the hues in degrees. Hues in between, which people name differently, have no name."""

PATTERNED = frozenset(
    {
        "american football",
        "battery",
        "camera",
        "candy cane",
        "compass",
        "dice",
        "egg",
        "flower",
        "giraffe",
        "hamster",
        "hedgehog",
        "house",
        "ladybug",
        "magnet",
        "mouth",
        "mushroom",
        "onion",
        "palette",
        "pencil",
        "pie",
        "pizza",
        "planet",
        "pliers",
        "puzzle piece",
        "steak",
        "target",
        "tiger",
        "wasp",
        "watermelon",
    }
)
"""Classes with more than one colour to the eye, although one may cover most of the ink."""


def colours(picture: Image.Image) -> tuple[tuple[int, int, int], str]:
    """Average colour of the ink, and the name of the one strong colour that nearly all of it has, or ""."""
    flat = np.asarray(picture.convert("RGBA")).reshape(-1, 4)
    flat = flat[flat[:, 3] > 128][:, :3].astype(np.float32)
    r, g, b = (int(v) for v in flat.mean(0)) if len(flat) else (128, 128, 128)
    high, low = flat.max(1), flat.min(1)
    # Outlines and highlights take no part: a red balloon has a black line and a white glint.
    vivid = flat[(high > 60) & (high - low > 0.3 * high)]
    strength = (vivid.max(1) - vivid.min(1)) / vivid.max(1) if len(vivid) else np.zeros(1)
    # Pale and muddy colours have no name that everybody gives them, so no question asks for it.
    if len(vivid) < 0.6 * len(flat) or np.median(strength) < 0.6 or np.median(vivid.max(1)) < 130:
        return (r, g, b), ""
    values, counts = np.unique(name_hues(vivid), return_counts=True)
    best = int(counts.argmax())
    return (r, g, b), str(values[best]) if counts[best] > 0.8 * len(vivid) else ""


def name_hues(rgb: np.ndarray) -> np.ndarray:
    """(n, 3) strong colours to (n,) names; dark orange is brown, "" is between two names."""
    high, low = rgb.max(1), rgb.min(1)
    spread = np.maximum(high - low, 1)
    r, g, b = rgb.T
    sector = np.where(high == r, (g - b) / spread % 6, np.where(high == g, (b - r) / spread + 2, (r - g) / spread + 4))
    ends = np.array([end for end, _ in HUES])
    names = np.array([name for _, name in HUES])[np.searchsorted(ends, sector * 60, side="right")]
    return np.where((names == "orange") & (high < 190), "brown", names)
