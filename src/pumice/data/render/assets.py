"""Pictures of named objects, from three Debian packages to small RGBA cut-outs in memory.

    objects.toml (class -> files) ──draw, crop, shrink──> cache (index.json, pixels.bin) ──> Library.picture(asset)

Files that show nearly the same drawing (a recoloured balloon, a mirrored stamp) form one cluster. A class with two or
more clusters is *shown*: one cluster is held out, the others train. Only shown classes with at least LEAST pictures to
train on are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import tomllib
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pumice.data.render.colours import PATTERNED, colours
from pumice.types import PumiceError

SIDE = 224
"""Longest side of a cut-out in pixels."""

VERSION = 1
"""Raise when the meaning of the cache changes."""

TABLE = Path(__file__).with_name("objects.toml")
EMOJI = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FOLDERS = {"tuxpaint": Path("/usr/share/tuxpaint/stamps"), "openclipart": Path("/usr/share/openclipart/png")}
PACKAGES = {"tuxpaint": "tuxpaint-stamps-default", "openclipart": "openclipart-png", "emoji": "fonts-noto-color-emoji"}


LEAST = 4
"""Training pictures that a class needs, to be drawn at all."""


@dataclass(frozen=True)
class Asset:
    """One cut-out: ``source`` ("tuxpaint:animals/…png", "emoji:1F436"), its class and where its pixels lie.

    ``colour`` is the name of its one obvious colour or "". ``mean`` is its average colour, to choose a background.
    ``cluster`` is the source of the first near-duplicate.
    """

    source: str
    name: str
    size: tuple[int, int]
    offset: int
    mean: tuple[int, int, int]
    colour: str
    cluster: str
    split: str


@dataclass(frozen=True)
class Kind:
    """A class of objects: its broader ``group`` or "", classes too ``alike`` to set against it, and its ``grammar``."""

    name: str
    group: str
    alike: frozenset[str]
    grammar: str


class Library:
    """All assets of both splits by class name, with their pixels mapped from the cache."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = json.loads((folder / "index.json").read_text())
        self.kinds = read_kinds()
        self.missing: list[str] = index["missing"]
        rows = [Asset(**{**row, "size": tuple(row["size"]), "mean": tuple(row["mean"])}) for row in index["assets"]]
        self.assets: dict[str, dict[str, list[Asset]]] = {"train": {}, "heldout": {}}
        for row in rows:
            self.assets[row.split].setdefault(row.name, []).append(row)
        # A class known from one or two drawings can't be recognised in another artist's: those are not drawn at all.
        well_known = {
            name
            for name, assets in self.assets["train"].items()
            if len(assets) >= LEAST and name in self.assets["heldout"]
        }
        for split, table in self.assets.items():
            self.assets[split] = {name: assets for name, assets in table.items() if name in well_known}

    @cached_property
    def pixels(self) -> np.memmap:
        """Flat bytes of every cut-out; mapped, so that many workers share one copy."""
        return np.memmap(self.folder / "pixels.bin", np.uint8, "r")

    def names(self, split: str) -> list[str]:
        """Class names with at least one picture in the split, sorted."""
        if split not in self.assets:
            raise PumiceError(f"no split {split!r} of the objects; choose one of {', '.join(self.assets)}")
        return sorted(self.assets[split])

    @property
    def shown(self) -> list[str]:
        """Class names with pictures in both splits, sorted."""
        return sorted(self.assets["heldout"])

    def picture(self, asset: Asset) -> Image.Image:
        """The RGBA cut-out of an asset, its longest side SIDE or less."""
        w, h = asset.size
        flat = self.pixels[asset.offset : asset.offset + w * h * 4]
        return Image.fromarray(np.asarray(flat).reshape(h, w, 4))


@lru_cache(1)
def read_kinds() -> dict[str, Kind]:
    """Classes of objects.toml; ``alike`` is made symmetric and joins a class to the class that is its group's name."""
    table = tomllib.loads(TABLE.read_text())
    alike = {name: set(row.get("alike", [])) for name, row in table.items()}
    for name, row in table.items():
        if row.get("group") in table:
            alike[name].add(row["group"])
        for other in sorted(alike[name]):
            alike[other].add(name)
    return {
        name: Kind(name, row.get("group", ""), frozenset(alike[name]), row.get("grammar", ""))
        for name, row in table.items()
    }


@lru_cache(1)
def library() -> Library:
    """The object library of this machine, built on first use (about a minute) in $PUMICE_CACHE or ~/.cache/pumice."""
    check_packages()
    root = Path(os.environ.get("PUMICE_CACHE") or Path.home() / ".cache" / "pumice")
    key = hashlib.sha256(TABLE.read_bytes() + f"{VERSION} {SIDE} {EMOJI.stat().st_size}".encode()).hexdigest()[:12]
    folder = root / f"objects-{key}"
    if not (folder / "index.json").exists():
        root.mkdir(parents=True, exist_ok=True)
        # Built aside and renamed: two workers that start together can't see half an index.
        scratch = Path(tempfile.mkdtemp(dir=root))
        build(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            shutil.rmtree(scratch)
    return Library(folder)


def check_packages() -> None:
    """Raise with the packages to install when any source of pictures is absent."""
    places = {**FOLDERS, "emoji": EMOJI}
    absent = [PACKAGES[key] for key, place in places.items() if not place.exists()]
    if absent:
        raise PumiceError(f"pictures of objects need Debian packages: apt-get install {' '.join(absent)}")


def build(folder: Path) -> None:
    """Draw every file of the table, cluster and split each class, and write index.json and pixels.bin."""
    table, rows, missing, offset = tomllib.loads(TABLE.read_text()), [], [], 0
    with (folder / "pixels.bin").open("wb") as out:
        for name, entry in table.items():
            drawn: dict[str, Image.Image] = {}
            for source in entry["files"]:
                picture = open_source(source)
                if picture is None:
                    missing.append(source)
                else:
                    drawn[source] = picture
            clusters = cluster(drawn)
            held = hold_out(clusters)
            for source, picture in drawn.items():
                mean, colour = colours(picture)
                colour = "" if name in PATTERNED else colour
                split = "heldout" if clusters[source] == held else "train"
                rows.append(Asset(source, name, picture.size, offset, mean, colour, clusters[source], split))
                offset += out.write(picture.tobytes())
    if len(missing) * 10 > len(rows):
        raise PumiceError(f"{len(missing)} pictures of {TABLE.name} are not on this machine, first {missing[0]}")
    text = json.dumps({"missing": missing, "assets": [asdict(row) for row in rows]})
    (folder / "index.json").write_text(text)


def open_source(source: str) -> Image.Image | None:
    """The cropped, shrunk RGBA picture of a source, or None when this version of the package lacks it."""
    origin, _, rest = source.partition(":")
    if origin == "emoji":
        picture = draw_emoji(chr(int(rest, 16)))
    else:
        path = FOLDERS[origin] / rest
        if not path.exists():
            return None
        with Image.open(path) as file:
            picture = file.convert("RGBA")
    # Faint shadows and stray pixels must not widen the box: only clearly opaque ink counts.
    box = picture.getchannel("A").point([0] * 48 + [255] * 208).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    scale = SIDE / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BOX, reducing_gap=2.0)
    return picture


def draw_emoji(char: str) -> Image.Image:
    """One colour emoji at the only size of its bitmap font."""
    picture = Image.new("RGBA", (160, 160))
    ImageDraw.Draw(picture).text((8, 8), char, font=emoji_font(), embedded_color=True)
    return picture


@lru_cache(1)
def emoji_font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(EMOJI), 109)


def cluster(pictures: dict[str, Image.Image]) -> dict[str, str]:
    """Source -> first source of its near-duplicates (same drawing scaled, mirrored, recoloured or shaded)."""
    prints = {source: fingerprint(picture) for source, picture in pictures.items()}
    first: dict[str, str] = {}
    for source, mine in prints.items():
        twins = [first[other] for other in first if similar(mine, prints[other])]
        first[source] = min([*twins, source]) if twins else source
        for other in first:
            if first[other] in twins:
                first[other] = first[source]
    return first


def fingerprint(picture: Image.Image) -> np.ndarray:
    """(2, 24, 24) float32: silhouette and standardised grey of the cropped picture, colour ignored."""
    small = np.asarray(picture.resize((24, 24), Image.Resampling.BOX), np.float32)
    alpha = small[..., 3] / 255
    grey = small[..., :3].mean(-1)
    inside = alpha > 0.5
    centre, spread = (grey[inside].mean(), grey[inside].std() + 8) if inside.any() else (0, 1)
    return np.stack([alpha, (grey - centre) / spread * alpha])


def similar(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two fingerprints, or one and the other's mirror image, show the same drawing.

    The limits come from looking at all pairs: the better the silhouettes agree, the less the shading has to. A new
    colour may even invert the shading, hence the absolute value.
    """
    for c in (b, b[..., ::-1]):
        gap = float(np.abs(a[0] - c[0]).mean())
        norm = float(np.sqrt((a[1] ** 2).sum() * (c[1] ** 2).sum())) or 1.0
        shading = abs(float((a[1] * c[1]).sum())) / norm
        plain = min(a[1].std(), c[1].std()) < 0.35
        if gap < 0.06 and (plain or shading > 0.7 or (gap < 0.03 and shading > 0.4)):
            return True
    return False


def hold_out(clusters: dict[str, str]) -> str | None:
    """The cluster to keep from training, by a stable hash; never the largest, so that training keeps the most."""
    sizes: dict[str, int] = {}
    for head in clusters.values():
        sizes[head] = sizes.get(head, 0) + 1
    order = sorted(sizes, key=lambda head: hashlib.sha256(head.encode()).hexdigest())
    largest = max(order, key=lambda head: sizes[head], default=None)
    return next((head for head in order if head != largest), None)
