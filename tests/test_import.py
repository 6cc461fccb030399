"""Public data sets: small made-up samples of each published form, converted and read as training reads them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pumice.cli import main
from pumice.config import DataConfig, load_recipe
from pumice.data.importing.forms import CORD_PROMPT, FORMS, SHORT_ANSWER
from pumice.data.importing.sets import Expected, PublicSet, find_set, look_at, public_sets
from pumice.data.importing.writing import Written, conversation_of, write_entries
from pumice.data.sources import Source, open_source
from pumice.types import PumiceError, Sample

arrow = pytest.importorskip("pyarrow")


def png(shade: int = 90) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (shade, 20, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    from pyarrow.parquet import write_table

    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(arrow.Table.from_pylist(rows), path)
    return path


def picture(shade: int = 90) -> dict[str, Any]:
    return {"bytes": png(shade), "path": None}


def put(path: Path, said: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, said)) if lines else json.dumps(said), encoding="utf-8")
    return path


def put_picture(path: Path, shade: int = 90) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(shade))
    return path


def converted(form: str, path: Path, out: Path, split: str = "train") -> tuple[Written, Source]:
    entries = FORMS[form](path, split)
    written = write_entries(entries, out, entries.source)
    return written, open_source(
        "mine", DataConfig(written.format, str(written.path), str(written.media or ".")), Path()
    )  # type: ignore[arg-type]


def texts(sample: Sample) -> list[str]:
    return ["".join(part for part in turn.content if isinstance(part, str)) for turn in sample.turns]


# each form


def test_cauldron(tmp_path):
    rows = [
        {"images": [picture()], "texts": [
            {"user": "Question: What?", "assistant": "Answer: this", "source": "TQA"},
            {"user": "And?", "assistant": "That.", "source": "TQA"}]},
        {"images": [picture(1), picture(2)], "texts": [{"user": "Differences?", "assistant": "None.", "source": "x"}]},
        {"images": [], "texts": [{"user": "Without a picture?", "assistant": "Yes.", "source": "x"}]},
    ]  # fmt: skip
    parquet(tmp_path / "tqa" / "train-00000-of-00001.parquet", rows)
    written, source = converted("cauldron", tmp_path / "tqa", tmp_path / "out")
    assert written.counts == {"written": 3}
    assert texts(source.sample(0)) == ["Question: What?", "Answer: this", "And?", "That."]
    assert [len(source.sample(i).media) for i in range(3)] == [1, 2, 0]
    assert source.sample(1).media[1].reference == png(2)
    assert source.sample(0).source == "tqa"


def test_finevision_has_more_columns(tmp_path):
    row = {"images": [picture()], "texts": [{"user": "Q", "assistant": "A"}], "source": "s", "relevance_min": 4}
    _, source = converted("cauldron", parquet(tmp_path / "sighted.parquet", [row]), tmp_path / "out")
    assert texts(source.sample(0)) == ["Q", "A"]


DOCVQA = {
    "questionId": 337,
    "question": "What is the date?",
    "docId": 1,
    "answers": ["1/8/93", "Jan 8"],
    "data_split": "train",
}


def test_docvqa_from_its_site(tmp_path):
    put_picture(tmp_path / "documents" / "xnbl0037_1.png")
    records = [{**DOCVQA, "image": "documents/xnbl0037_1.png"}, {**DOCVQA, "image": "documents/gone.png"}]
    put(tmp_path / "train_v1.0_withQT.json", {"dataset_name": "docvqa", "dataset_split": "train", "data": records})
    written, source = converted("docvqa", tmp_path, tmp_path / "out")
    assert written.counts == {"written": 1, "left out: picture missing": 1}
    assert texts(source.sample(0)) == [f"What is the date?\n{SHORT_ANSWER}", "1/8/93"]
    assert Path(source.sample(0).media[0].reference).name == "xnbl0037_1.png"


def test_docvqa_as_parquet_by_split(tmp_path):
    parquet(tmp_path / "data" / "validation-00000-of-00001.parquet", [{**DOCVQA, "image": picture()}])
    parquet(tmp_path / "data" / "test-00000-of-00001.parquet", [{**DOCVQA, "answers": None, "image": picture()}])
    written, source = converted("docvqa", tmp_path, tmp_path / "out", "validation")
    assert len(source) == 1
    written, _ = converted("docvqa", tmp_path, tmp_path / "other", "test")
    assert written.counts == {"written": 0, "left out: not of this form": 1}


def test_chartqa_both_ways(tmp_path):
    put_picture(tmp_path / "a" / "train" / "png" / "two.png")
    row = {"imgname": "two.png", "query": "How many bars?", "label": "14"}
    put(tmp_path / "a" / "train" / "train_human.json", [row])
    put(tmp_path / "a" / "train" / "train_augmented.json", [row, {"imgname": "two.png", "query": "", "label": "1"}])
    written, source = converted("chartqa", tmp_path / "a", tmp_path / "out")
    assert written.counts == {"written": 2, "left out: not of this form": 1}
    cells = [{"image": picture(), "query": "How many bars?", "label": ["14"], "human_or_machine": 0}]
    parquet(tmp_path / "b" / "data" / "train-00000-of-00001.parquet", cells)
    _, other = converted("chartqa", tmp_path / "b", tmp_path / "other")
    assert texts(source.sample(0)) == texts(other.sample(0)) == [f"How many bars?\n{SHORT_ANSWER}", "14"]


def test_cord_both_ways(tmp_path):
    menu = [{"nm": "TEH", "price": "5.000"}, {"nm": "NASI", "price": "9.000"}]
    fields = {"menu": menu, "total": {"total_price": "14.000"}}
    rows = [{"image": picture(), "ground_truth": json.dumps({"gt_parse": fields, "valid_line": []})}]
    parquet(tmp_path / "a" / "data" / "train-00000-of-00001.parquet", rows)
    _, source = converted("cord", tmp_path / "a", tmp_path / "out")
    lines = [
        {"category": f"menu.{key}", "group_id": group, "words": [{"text": value}]}
        for group, item in enumerate(menu)
        for key, value in item.items()
    ]
    lines.append({"category": "total.total_price", "group_id": 9, "words": [{"text": "14.000"}]})
    put(tmp_path / "b" / "train" / "json" / "receipt_00000.json", {"valid_line": lines, "meta": {}})
    put_picture(tmp_path / "b" / "train" / "image" / "receipt_00000.png")
    _, other = converted("cord", tmp_path / "b", tmp_path / "other")
    for one in (source, other):
        question, answer = texts(one.sample(0))
        assert question == CORD_PROMPT
        assert json.loads(answer) == fields


def test_ureader_has_the_picture_in_a_turn_of_its_own(tmp_path):
    put_picture(tmp_path / "ureader_images" / "ChartQA" / "a.png")
    turns = [("user", "<image>"), ("user", "What is read here?"), ("assistant", "Chalk.")]
    record = {"image": ["ChartQA/a.png"], "conversations": [{"from": who, "value": said} for who, said in turns]}
    silent = {"image": ["ChartQA/a.png"], "conversations": record["conversations"][:2]}
    put(tmp_path / "ureader_json" / "train.jsonl", [record, silent])
    put(tmp_path / "ureader_json" / "test_DocVQA.jsonl", [record])
    written, source = converted("ureader", tmp_path, tmp_path / "out")
    assert written.counts == {"written": 1, "left out: not of this form": 1}
    assert texts(source.sample(0)) == ["What is read here?", "Chalk."]
    assert len(source.sample(0).media) == 1


BAD = [None, 5, True, [], {}, [None], {"a": 1}, "x" * 5000, "a\0b"]


def variants(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The record with each of its values in turn left out, or something else."""
    without = [{k: v for k, v in record.items() if k != key} for key in record]
    return without + [record | {key: bad} for key in record for bad in BAD]


def test_malformed_rows_are_left_out_one_by_one(tmp_path):
    put_picture(tmp_path / "ureader" / "a.png")
    turns = [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]
    rows = [{"image": "a.png", "conversations": [turn, turns[1]]} for turn in variants(turns[0])]
    rows += [{"image": bad, "conversations": turns} for bad in ("x" * 5000, 5)]
    put(tmp_path / "ureader" / "train.jsonl", [*rows, {"image": "a.png", "conversations": turns}])
    word = {"category": "menu.nm", "group_id": 1, "words": [{"text": "Tea"}]}
    lines = [{"valid_line": [line]} for line in variants(word)] + [{"valid_line": [word]}]
    for number, line in enumerate(lines):
        put(tmp_path / "cord" / "train" / "json" / f"{number:03}.json", line)
        put_picture(tmp_path / "cord" / "train" / "image" / f"{number:03}.png")
    none = {"images": [picture()], "texts": [{"user": None, "assistant": "A"}]}
    parquet(
        tmp_path / "cauldron" / "a.parquet", [none, {"images": [picture()], "texts": [{"user": "Q", "assistant": "A"}]}]
    )
    for form in ("ureader", "cord", "cauldron"):
        written, source = converted(form, tmp_path / form, tmp_path / "out")
        assert sum(written.counts.values()) == len(FORMS[form](tmp_path / form, "train"))
        assert texts(source.sample(len(source) - 1))[1] in ("A", '{"menu": [{"nm": "Tea"}]}')
        assert all("None" not in text for row in range(len(source)) for text in texts(source.sample(row)))


def test_malformed_records_of_a_ready_set_are_counted(tmp_path):
    one = PublicSet("x", "X", "https://e.org", "free", "llava", (Expected("x.json"),))
    put(tmp_path / "x.json", [{"image": 5}, {"image": [5]}, {"image": {"a": 1}}, {"image": "x" * 5000}, {}])
    (looked,) = look_at(one, tmp_path)
    assert (looked.faulty, len(looked.missing)) == (3, 1)


def test_parts_of_many_rows_are_all_there_in_order(tmp_path, monkeypatch):
    from pumice.data.importing import writing

    monkeypatch.setattr(writing, "PART", 4)
    rows = [{"images": [picture(i)], "texts": [{"user": f"Q{i}", "assistant": "A"}]} for i in range(11)]
    parquet(tmp_path / "set" / "a.parquet", rows[:6])
    parquet(tmp_path / "set" / "b.parquet", rows[6:])
    written, source = converted("cauldron", tmp_path / "set", tmp_path / "out")
    assert [texts(source.sample(i))[0] for i in range(11)] == [f"Q{i}" for i in range(11)]
    parts = sorted(written.path.glob("*.parquet"))
    before = [part.read_bytes() for part in parts]
    parts[1].unlink()
    converted("cauldron", tmp_path / "set", tmp_path / "out")
    assert [part.read_bytes() for part in parts] == before


def test_a_marker_in_a_question_is_refused():
    with pytest.raises(PumiceError, match="as text"):
        conversation_of([("What does <image> do in HTML?", "It shows one.")], 1)
    assert conversation_of([("What does <image> do?", "Show.")], 0)[0]["value"] == "What does <image> do?"


# what is known, and the check


def test_every_set_has_a_form_and_the_recipes_agree():
    ready = {name: one for name, one in public_sets().items() if one.ready}
    assert all(one.files for one in ready.values())
    assert {one.form for one in public_sets().values() if not one.ready} == set(FORMS)
    for recipe in ("llava-1.5-7b", "llava-next-vicuna-7b", "onevision-7b"):
        for name, data in load_recipe(f"recipes/{recipe}.toml").data.items():
            known = [one for one in public_sets().values() if one.source == name]
            for one in known:
                assert (one.url, one.files[0].records, one.licence) == (data.url, data.samples, data.licence)


def llava_set(path: Path, records: int) -> PublicSet:
    return PublicSet(
        "mine", "Mine", "https://example.org", "none", "llava", (Expected(path.name, records),), media="images"
    )


def test_counts_and_missing_pictures_are_noticed(tmp_path):
    put_picture(tmp_path / "images" / "a.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    path = put(tmp_path / "x.json", [{"image": "a.png", "conversations": turns}, {"image": ["a.png", "b.png"]}])
    (looked,) = look_at(llava_set(path, 2), tmp_path)
    assert (looked.records, looked.missing, looked.right) == (2, ["b.png"], False)
    put_picture(tmp_path / "images" / "b.png")
    assert look_at(llava_set(path, 2), tmp_path)[0].right
    assert not look_at(llava_set(path, 3), tmp_path)[0].right
    with pytest.raises(PumiceError, match=r"expected other\.json in it"):
        look_at(llava_set(Path("other.json"), 2), tmp_path)


def test_the_command_checks_and_prints_a_recipe_that_works(tmp_path, capsys):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}]
    put_picture(tmp_path / "images" / "a.png")
    put(tmp_path / "blip_laion_cc_sbu_558k.json", [{"id": "1", "image": "a.png", "conversations": turns}])
    assert main(["data", "import", "llava-pretrain", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "1 records, 558,128 expected" in " ".join(shown.split())
    import tomllib

    section = tomllib.loads(shown[shown.index("[data.blip_558k]") :])["data"]["blip_558k"]
    assert open_source("x", DataConfig(**section), Path()).sample(0).media[0].size == (40, 30)


def test_the_command_converts_and_counts(tmp_path, capsys):
    rows = [{"images": [picture()], "texts": [{"user": "Q", "assistant": "A"}]}]
    parquet(tmp_path / "tqa" / "train-00000-of-00001.parquet", rows)
    argv = ["data", "import", "cauldron", str(tmp_path / "tqa"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tqa"]["counts"] == {"written": 1}


def test_a_manifest_notices_another_content(tmp_path, capsys):
    rows = [{"images": [picture()], "texts": [{"user": "Q", "assistant": "A"}]}]
    file = parquet(tmp_path / "tqa" / "a.parquet", rows)
    kept = ["--manifest", str(tmp_path / "m.json"), "--workers", "1"]
    argv = ["data", "import", "cauldron", str(file.parent), *kept]
    assert main([*argv, "--out", str(tmp_path / "1")]) == 0
    assert main([*argv, "--out", str(tmp_path / "2")]) == 0
    assert "all 1 files as before" in capsys.readouterr().out
    parquet(file, [*rows, *rows])
    assert main([*argv, "--out", str(tmp_path / "3")]) == 1
    assert "a.parquet: another content" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["docvq", "."], "did you mean docvqa"),
        (["docvqa", "nowhere"], "it is published at|published at https"),
        (["docvqa", "."], "give --out DIR"),
        (["docvqa", "{empty}", "--out", "{out}"], "neither train_v1.0_withQT.json nor parquet"),
        (["cord"], "expected NAME PATH"),
    ],
)
def test_mistakes_are_one_line(argv, wrong, tmp_path, capsys):
    import re

    (tmp_path / "empty").mkdir()
    named = {"{empty}": str(tmp_path / "empty"), "{out}": str(tmp_path / "o")}
    assert main(["data", "import", *[named.get(word, word) for word in argv]]) == 2
    error = capsys.readouterr().err
    assert re.search(wrong, error)
    assert error.count("\n") == 1


def test_unknown_sets_are_named():
    with pytest.raises(PumiceError, match="known are llava-pretrain"):
        find_set("zzzzzz")
