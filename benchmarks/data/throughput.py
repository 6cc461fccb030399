"""How many samples a second one core renders, indexes, checks, cleans and filters; on paper, what 4 million take.

    python -m benchmarks.data.throughput --n 1000 --hashes 1000000,4000000

Rendered is a mix of equal shares of all kinds but SynthDoG's pages, which stand apart, and screens, whose browser is
another process. All else works on made-up samples: JPEGs of 1024 x 768 pixels at quality 90 (smoothed noise),
conversations of about 100 words; indexed with the recipe's tokenizer and layout. Times are the processor's, so that
other work on the machine counts little. Prints Markdown: each rate, and 4,000,000 / rate / 3,600 core-hours.

Captioned are 48 rendered receipts, which pocket reads out; another assistant has a rate of its own.

The process that hands work out and writes what comes back is one, however many work for it. Its own time is the second
table, with ``--ray`` also for a local Ray cluster; its rate is the most that all workers together can reach.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

import pumice
from pumice.config import load_recipe
from pumice.data.care.clean import Cleaned
from pumice.data.care.near import near_pairs
from pumice.data.care.opening import open_path
from pumice.data.care.overlap import build_index, find_hits
from pumice.data.care.personal import Scrubber
from pumice.data.care.pictures import NEAR
from pumice.data.care.signatures import Signer, sign
from pumice.data.importing.writing import write_entries
from pumice.data.index import build_index as index_source
from pumice.data.index import measure
from pumice.data.knowledge.caption import Run, caption
from pumice.data.knowledge.filtered import Filtered
from pumice.data.knowledge.filters import Filters
from pumice.data.knowledge.pictures import open_pictures
from pumice.data.pool import RayPool, Where
from pumice.data.produce.plan import Plan, make_plan, spread
from pumice.data.produce.run import render_shards
from pumice.data.render.kinds import KINDS, missing
from pumice.data.rendered import renderer
from pumice.data.sources import Source
from pumice.model.build import build_processor
from pumice.read.ask import Prompt
from pumice.read.askers import Asker, EngineAsker
from pumice.read.cluster import ClusterAsker

ALL = 4_000_000
CORES = 64
PAGES = ("synthdog_en", "synthdog_ja", "synthdog_ko", "synthdog_zh")
PICTURES = 50
"""Different pictures: the samples show them in turn, so that the disk holds few."""
RECEIPTS, BATCH, LONGEST = 48, 16, 128
READ = "Read the text in the picture."


def make(folder: Path, count: int) -> Path:
    """A file of records with their pictures."""
    rng, noise = random.Random(0), np.random.default_rng(0)
    words = [
        f"{a}{b}" for a in ("ba", "co", "di", "fu", "me", "to", "ri") for b in ("l", "mer", "nt", "son", "ker", "d")
    ]
    for i in range(PICTURES):
        image = Image.fromarray(noise.integers(0, 256, (768, 1024, 3), dtype=np.uint8))
        image.filter(ImageFilter.GaussianBlur(2)).save(folder / f"{i}.jpg", quality=90)
    path = folder / "train.jsonl"
    with path.open("w") as file:
        for i in range(count):
            said = " ".join(rng.choice(words) for _ in range(80))
            asked = " ".join(rng.choice(words) for _ in range(20))
            turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": said}]
            file.write(json.dumps({"id": str(i), "image": f"{i % PICTURES}.jpg", "conversations": turns}) + "\n")
    return path


def row(what: str, count: int, work: Callable[[], Any]) -> None:
    """Time some work, and print its line of the table."""
    begin = time.process_time()
    work()
    rate = count / (time.process_time() - begin)
    hours = ALL / rate / 3600
    print(f"| {what} | {float(f'{rate:.3g}'):,g} | {hours:,.1f} | {hours / CORES:.2f} |", flush=True)


def mix(count: int, pages: bool) -> Plan:
    """A plan of SynthDoG's pages, or of all other kinds that can be drawn here but screens."""
    kinds = PAGES if pages else set(KINDS) - {*PAGES, "screens"}
    names = [name for name in kinds if not missing(name)]
    return make_plan(spread(names), count, 0, "train", "papers", "wds", 64)


def rendering(count: int) -> None:
    """What is drawn and encoded."""
    for what, pages, n in (
        ("a mix of all but SynthDoG's pages", False, count),
        ("SynthDoG's pages", True, count // 10),
    ):
        plan = mix(n, pages)
        row(f"render: {what}", n, lambda plan=plan: [plan.record(i) for i in range(plan.samples)])


def caring(source: Source, folder: Path, recipe: Path) -> None:
    """What is done with samples that are there."""
    n, kept = len(source), folder / "cache"
    processor = build_processor(load_recipe(recipe).model)
    tests = build_index(" ".join(random.Random(i).choices("abcdefghijklmnop", k=40)) for i in range(5000))
    Signer(source, "train", Scrubber()).sign(0)  # so that imports don't count
    measure(source, 0, processor)
    row(f"index ({recipe.stem})", n, lambda: index_source(source, "train", processor, kept))
    row("check: pictures and texts", n, lambda: sign(source, "train", kept))
    row("check: the same with --personal", n, lambda: sign(source, "train", kept, Scrubber()))
    row("check: n-grams of 5,000 test items", n, lambda: find_hits(source, "train", tests, kept, 1, "here"))
    languages = Filters(languages=("en", "zh", "la"))
    copies = {
        "clean": Cleaned(source, {}, None),
        "clean --scrub": Cleaned(source, {}, Scrubber()),
        "filter --language": Filtered(source, {}, None, languages),
    }
    for what, copy in copies.items():
        row(what, n, lambda copy=copy, what=what: write_entries(copy, folder / "out", what.split()[-1]))


def captioning(folder: Path, name: str, asker: Asker) -> tuple[float, float]:
    """(captions a second of this process, words of one): all pictures of a folder are read out."""
    run = Run(asker, (Prompt(READ),), LONGEST, Filters(words=(0, 1000)))
    out = folder.parent / name
    out.mkdir()
    begin = time.process_time()
    caption(open_pictures(folder), run, out, "all", lambda *_: None)
    seconds = time.process_time() - begin
    lines = (out / "all.captions.jsonl").read_text().splitlines()
    words = sum(len(one["caption"].split()) for line in lines for one in json.loads(line)["captions"])
    return len(lines) / seconds, words / len(lines)


def writing(count: int, folder: Path, name: str, where: Where) -> None:
    """This process's own time while two others render."""
    plan = mix(count, False)
    begin = time.process_time()
    tally = render_shards(plan, folder / name, 2, where=where)
    rate = count / (time.process_time() - begin)
    drawn = count / sum(seconds for _, seconds in tally.spent.values())
    print(f"| render, {name} | {rate:,.0f} | {drawn:,.1f} | {rate / drawn:,.0f} |", flush=True)


def rates(args: argparse.Namespace) -> None:
    """The first table."""
    print(f"| work | samples/s and core | core-hours for 4 million | hours on {CORES} cores |\n|---|---|---|---|")
    rendering(args.n)
    with tempfile.TemporaryDirectory() as scratch:
        caring(open_path(make(Path(scratch), args.n), "train"), Path(scratch), args.recipe)


def captions(args: argparse.Namespace) -> None:
    """How fast pocket captions, and with ``--ray`` the process that hands pictures to a worker of a cluster."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "pictures"
        folder.mkdir()
        for i in range(RECEIPTS):
            renderer("receipts")(random.Random(f"caption {i}"), "train").image.save(folder / f"{i}.png")
        model = partial(pumice.load, "pocket")
        asker = EngineAsker(model(), LONGEST, BATCH, (Prompt(READ),))
        rate, words = captioning(folder, "here", asker)
        asker.close()
        hours = ALL / rate / 3600
        print(f"| caption: pocket, {words:.0f} words | {rate:.3g} | {hours:,.1f} | {hours / CORES:.2f} |", flush=True)
        if args.ray:
            cluster = ClusterAsker(model, LONGEST, BATCH, (Prompt(READ),), 1)
            handed, _ = captioning(folder, "Ray", cluster)
            cluster.close()
            print(f"| caption, Ray | {handed:,.0f} | {rate:.3g} | {handed / rate:,.0f} |", flush=True)


def writer(args: argparse.Namespace) -> None:
    """The second table."""
    print("| writer | samples/s | of a worker | workers that it keeps busy |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        writing(args.n, Path(scratch), "processes", "here")
        if args.ray:
            with RayPool(2) as pool:
                render_shards(mix(4, False), Path(scratch) / "started", 2, where=pool)  # so that a start doesn't count
                writing(args.n, Path(scratch), "Ray", pool)


def hashes(args: argparse.Namespace) -> None:
    """Near ones among random hashes."""
    for count in map(int, args.hashes.split(",")):
        numbers = np.random.default_rng(1).integers(0, 2**64, (count, 5), dtype=np.uint64)
        begin = time.process_time()
        near_pairs(numbers, NEAR)
        print(f"{count:,} hashes looked up in {time.process_time() - begin:.0f} s on one core", flush=True)


PARTS = {"rates": rates, "captions": captions, "writer": writer, "hashes": hashes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="samples")
    parser.add_argument("--hashes", default="1000000", help="numbers of hashes to look up, with commas")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/pocket.toml"), help="whose samples are indexed")
    parser.add_argument("--ray", action="store_true", help="also what a Ray cluster's driver does")
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    args = parser.parse_args()
    for part in [args.only] if args.only else PARTS:
        PARTS[part](args)
        print(flush=True)


if __name__ == "__main__":
    main()
