"""What lies beside finished shards: index.json, a contact sheet a kind, and the data card.

shards' facts ──> index.json (WebDataset's form, with sha256) · contact/KIND.png · README.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pumice.data.produce.card import write_card
from pumice.data.produce.contact import contact_sheet
from pumice.data.produce.plan import Plan
from pumice.data.produce.run import SHARDS, read_facts
from pumice.data.produce.shards import settle, write_whole
from pumice.types import PumiceError

CONTACTS = "contact"
SHOWN = 12
"""Examples on a contact sheet."""
SEARCH = 200
"""Records looked at for each example of a sheet; of a rarer kind the sheet shows fewer."""


def finish(plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Write index, contact sheets and card of a finished run; returns the facts of its shards.

    Raises:
        PumiceError: a shard isn't there.
    """
    facts = []
    for shard in range(plan.shards):
        found = read_facts(folder, plan, shard)
        if found is None:
            raise PumiceError(f"{folder / SHARDS / plan.name(shard)}: not there whole; the same command makes it")
        facts.append(found)
    shards = [
        {
            "url": f"{SHARDS}/{fact['name']}",
            "nsamples": fact["samples"],
            "filesize": fact["bytes"],
            "sha256": fact["sha256"],
        }
        for fact in facts
    ]
    index = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": folder.name, "shardlist": shards}
    write_whole(folder / "index.json", json.dumps(index, indent=1, ensure_ascii=False).encode())
    (folder / CONTACTS).mkdir(exist_ok=True)
    for kind, numbers in _first(plan).items():
        path = folder / CONTACTS / f"{kind}.png"
        if not path.exists():
            scratch = path.with_suffix(".tmp")
            contact_sheet([plan.example(number) for number in numbers]).save(scratch, "PNG")
            settle(scratch, path)
    write_card(plan, folder, facts)
    return facts


def _first(plan: Plan) -> dict[str, list[int]]:
    """The first numbers of every kind, to be looked at."""
    found: dict[str, list[int]] = {kind: [] for kind in plan.weights}
    for number in range(min(plan.samples, SHOWN * SEARCH)):
        numbers = found[plan.kind(number)]
        if len(numbers) < SHOWN:
            numbers.append(number)
        elif all(len(numbers) >= SHOWN for numbers in found.values()):
            break
    return {kind: numbers for kind, numbers in found.items() if numbers}
