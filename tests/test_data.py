"""Sources on disk: records, conversations, samplings, the index, and the forms that data is published in."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pumice.config import DataConfig
from pumice.data import index as indexing
from pumice.data import records as scanning
from pumice.data.conversations import conversation
from pumice.data.index import build_index, measure
from pumice.data.records import Records
from pumice.data.sampling import choose
from pumice.data.sources import open_source
from pumice.encode import encode
from pumice.types import IGNORE, IMAGE, Media, PumiceError


@pytest.fixture
def root(tmp_path) -> Path:
    """A data root with pictures a.png .. d.png of 30 to 90 pixels."""
    for position, name in enumerate("abcd"):
        Image.new("RGB", (30 + 20 * position, 40), (60 * position, 20, 90)).save(tmp_path / f"{name}.png")
    return tmp_path


def said(question: str, answer: str = "Blue.") -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path: Path, records: list, lines: bool = False) -> Path:
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in records) if lines else json.dumps(records, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


def source(root: Path, path: str, format: str = "llava", **more):
    return open_source("mine", DataConfig(format, path, **more), root)


# records


@pytest.mark.parametrize("lines", [False, True])
def test_records_of_any_size_are_found_across_chunks(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(scanning, "CHUNK", 61)
    wanted = [{"id": i, "text": 'ü"]},{[ \\ 漢字' * (i % 9), "n": [1.5, {"a": i}]} for i in range(300)]
    found = Records(write(tmp_path / "x.json", wanted, lines))
    assert [found[i] for i in range(len(found))] == wanted


def test_a_number_at_the_end_of_a_chunk_is_whole(tmp_path, monkeypatch):
    for size in range(1, 20):
        monkeypatch.setattr(scanning, "CHUNK", size)
        (tmp_path / "n.json").write_text("[1234567, 89, {}]")
        assert scanning.scan(tmp_path / "n.json").tolist() == [[1, 8], [10, 12], [14, 16]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1}, {"a"', r"x.json: not a JSON array of records: byte 11: Expecting ':'"),
        ('[{"a": 1}', r"byte 1: the array doesn't end"),
        ("[3]", r"record 0 at byte 1: int, expected an object"),
        ('{"a": 1}\n{"a": \n', r"record 1 at byte 9: Expecting value"),
    ],
)
def test_a_broken_file_is_named_with_its_byte(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(PumiceError, match=message):
        [record for record in Records(tmp_path / "x.json")]  # noqa: C416 (reads every record)


# conversations


def media(name: str) -> list[Media]:
    return [Media(name, (10, 10), name=name)]


def content(record: dict) -> list[list[str]]:
    sample = conversation(record, media, "x")
    return [[part.name if isinstance(part, Media) else part for part in turn.content] for turn in sample.turns]


@pytest.mark.parametrize(
    ("text", "images", "wanted"),
    [
        ("<image>\nWhat?", ["p"], ["p", "What?"]),
        ("What is it?\n<image>", ["p"], ["p", "What is it?"]),  # one marker goes to the front
        ("What <image> is it? ", ["p"], ["p", "What  is it?"]),
        ("<image>\n<image>\nAlike?", ["p", "q"], ["p", "q", "Alike?"]),
        ("First <image> then <image>?", ["p", "q"], ["First ", "p", " then ", "q", "?"]),
        ("QA_GT_caption_based_noisy<image>\nWhy?", ["p"], ["p", "Why?"]),
        ("What does <image> mean in HTML?", [], ["What does <image> mean in HTML?"]),  # text alone: a text
    ],
)
def test_markers_say_where_pictures_stand(text, images, wanted):
    assert content({"image": images, "conversations": said(text)}) == [wanted, ["Blue."]]


def test_forms_of_the_same_record_are_one_sample():
    wanted = [["p", "What?"], ["Blue."]]
    roles = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "Blue."}]
    assert content({"image": "p", "conversations": said("<image>\nWhat?")}) == wanted
    assert content({"image": "p", "video": "v", "conversations": roles}) == wanted  # the picture wins
    assert content({"video": "p", "conversations": said("<image>\nWhat?")}) == wanted
    late = [{"from": "gpt", "value": "Hello!"}, *said("<image>\nWhat?")]
    assert content({"image": "p", "conversations": late}) == wanted
    system = [{"from": "system", "value": "Be brief."}, *said("<image>\nWhat?")]
    assert content({"image": "p", "conversations": system}) == [["Be brief."], *wanted]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "no conversations"),
        ({"conversations": []}, "no conversations"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "no turn of the user"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, r"conversations\[0\]: expected .*'bot'"),
        ({"conversations": [{"from": "human"}]}, r"conversations\[0\]: expected"),
        ({"conversations": said("a") + said("b")[1:]}, "turn 2 is the assistant's"),
        ({"image": "p", "conversations": said("What?")}, "1 pictures or videos, and 0 <image>"),
        ({"image": ["p", "q"], "conversations": said("<image>\nWhat?")}, "2 pictures or videos, and 1 <image>"),
    ],
)
def test_what_isnt_a_conversation_is_refused(record, message):
    with pytest.raises(PumiceError, match=message):
        conversation(record, media, "x")


# sources


def test_samplings_are_those_of_llava_next():
    rng = random.Random(0)
    assert choose(7, "all", rng).tolist() == list(range(7))
    assert choose(7, "first:3", rng).tolist() == [0, 1, 2]
    assert choose(7, "end:3", rng).tolist() == [4, 5, 6]
    assert choose(7, "first:30%", rng).tolist() == [0, 1, 2]  # ceil(2.1)
    assert choose(7, "first:99", rng).tolist() == list(range(7))
    drawn = choose(100, "random:30%", random.Random(1)).tolist()
    assert len(set(drawn)) == 30
    assert drawn == choose(100, "random:30%", random.Random(1)).tolist()
    assert drawn != sorted(drawn)


def test_a_yaml_mixture_joins_its_files_each_sampled_alone(root):
    for name in ("one", "two"):
        write(root / f"{name}.json", [{"id": f"{name}{i}", "conversations": said("Hi")} for i in range(10)])
    listed = 'datasets:\n  - json_path: one.json\n    sampling_strategy: "end:20%"\n  - json_path: two.json\n'
    (root / "mix.yaml").write_text(listed)
    found = source(root, "mix.yaml")
    assert [found.sample(i).id for i in range(len(found))] == ["one8", "one9", *(f"two{i}" for i in range(10))]
    (root / "random.yaml").write_text("datasets: [{json_path: two.json, sampling_strategy: 'random:5'}]")
    alone = [source(root, "random.yaml").sample(i).id for i in range(5)]
    (root / "more.yaml").write_text(
        "datasets: [{json_path: one.json}, {json_path: two.json, sampling_strategy: 'random:5'}]"
    )
    beside = source(root, "more.yaml")
    assert [beside.sample(i).id for i in range(10, 15)] == alone  # another file changes nothing
    (root / "bad.yaml").write_text("datasets: [{json_path: three.json}]")
    with pytest.raises(PumiceError, match=r"1 of its 1 files don't exist: .*three.json"):
        source(root, "bad.yaml")
    (root / "bad.yaml").write_text("datasets: [{json_path: two.json, sampling_strategy: 'some:3'}]")
    with pytest.raises(PumiceError, match="sampling_strategy 'some:3'; expected"):
        source(root, "bad.yaml")


def parquet(path: Path, rows: list[dict]) -> None:
    import pyarrow as arrow
    from pyarrow.parquet import write_table

    write_table(arrow.Table.from_pylist(rows), path, row_group_size=3)


def test_every_form_gives_the_same_sample(root, processor):
    pytest.importorskip("pyarrow")
    record = {"id": "7", "image": "b.png", "conversations": said("<image>\nWhat colour?")}
    write(root / "l.json", [record])
    write(root / "l.jsonl", [record], lines=True)
    parts = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "What colour?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": "Blue."}]
    write(root / "m.jsonl", [{"id": "7", "messages": messages}], lines=True)
    embedded = {"bytes": (root / "b.png").read_bytes(), "path": None}
    parquet(root / "p.parquet", [{"id": "7", "image": embedded, "conversations": record["conversations"]}])
    wanted = encode(source(root, "l.json").sample(0), processor)
    assert (wanted.ids == IMAGE).any()
    assert (wanted.labels != IGNORE).sum() > 3
    for path, format in (("l.jsonl", "llava"), ("m.jsonl", "messages"), ("p.parquet", "parquet")):
        found = encode(source(root, path, format).sample(0), processor)
        assert (found.ids.equal(wanted.ids), found.labels.equal(wanted.labels)) == (True, True), path
        assert found.tiles.equal(wanted.tiles), path


def test_parquet_rows_are_found_over_files_and_row_groups(root):
    pytest.importorskip("pyarrow")
    (root / "p").mkdir()
    for part in range(2):
        rows = [{"id": f"{part}-{i}", "image": None, "conversations": said("Hi")} for i in range(7)]
        parquet(root / "p" / f"{part}.parquet", rows)
    found = source(root, "p", "parquet", sampling="end:9")
    assert [found.sample(i).id for i in (0, 8, 1, 2)] == ["0-5", "1-6", "0-6", "1-0"]
    (root / "p" / "0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(PumiceError, match="not readable as parquet"):
        source(root, "p", "parquet")


def test_captions_lie_beside_their_pictures(root):
    (root / "a.txt").write_text("A dark square.\n")
    (root / "x.txt").write_text("no picture")
    found = source(root, ".", "captions")
    first = found.sample(0)
    assert [turn.role for turn in first.turns] == ["user", "assistant"]
    assert first.turns[1].content == ("A dark square.",)
    with pytest.raises(PumiceError, match=r"x.txt: 0 pictures of that name"):
        found.sample(1)


def test_errors_name_file_record_and_where_the_data_is_published(root):
    with pytest.raises(
        PumiceError, match=r"\[data.mine\]: .*gone.json doesn't exist; it is published at https://e.org"
    ):
        source(root, "gone.json", url="https://e.org")
    write(root / "x.json", [{"conversations": said("Hi")}, {"image": "zz.png", "conversations": said("<image>\nHi")}])
    with pytest.raises(PumiceError, match=r"x.json, record 1: .*zz.png"):
        source(root, "x.json").sample(1)


MALFORMED = [
    {"image": 5}, {"image": {"a": 1}}, {"image": [None]}, {"image": ["a.png", ["b.png"]]}, {"image": [""]},
    {"image": "a" * 5000}, {"image": "a\0.png"}, {"image": "\ud800.png"}, {"conversations": [{"from": ["human"]}]},
    {"id": "\ud800", "image": None, "conversations": [{"from": "human", "value": "Hi"}]},
]  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "tar", "zip", "lmdb"])
def test_a_malformed_record_is_left_out_and_the_others_stay(root, processor, kind):
    good = {"image": "a.png", "conversations": said("<image>\nWhat?")}
    records = [good | bad for bad in MALFORMED] + [good]
    (root / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + "[" * 10**5 + "\n")
    media = packed(root, kind) if kind != "folder" else "."
    index = build_index(source(root, "x.jsonl", media=media), "mine", processor, root / "cache")
    assert index.usable.tolist() == [len(MALFORMED)]
    assert all(index.detail[row] for row in range(len(records)) if row != len(MALFORMED))


def test_a_shards_malformed_record_is_an_error_of_one_line(root):
    import tarfile

    with tarfile.open(root / "x.tar", "w") as archive:
        for name, image in (("a", ["a.png", ["b"]]), ("b", {"c": 1})):
            file = write(root / f"{name}.json", {"image": image, "conversations": said("<image>\nWhat?")})
            archive.add(file, file.name)
    found = source(root, "x.tar", "webdataset")
    for row in range(2):
        with pytest.raises(PumiceError, match=r"expected the name of a file|no member"):
            found.sample(row)


def test_damaged_parquet_and_zip_are_errors_of_a_sample(root):
    import zipfile

    pytest.importorskip("pyarrow")
    picture = os.urandom(3000)
    parquet(root / "p.parquet", [{"image": {"bytes": picture, "path": None}, "conversations": said("<image>\nHi")}])
    data = (root / "p.parquet").read_bytes()
    at = data.index(picture[:100])
    (root / "p.parquet").write_bytes(data[:4] + bytes(byte ^ 255 for byte in data[4:at]) + data[at:])
    with pytest.raises(PumiceError, match="not readable as parquet"):
        source(root, "p.parquet", "parquet").sample(0)
    with zipfile.ZipFile(root / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", b"x" * 2000 + os.urandom(2000))
    data = (root / "z.zip").read_bytes()
    at = data.index(b"a.png") + 5
    (root / "z.zip").write_bytes(data[:at] + bytes(byte ^ 255 for byte in data[at : at + 300]) + data[at + 300 :])
    write(root / "x.json", [{"image": "a.png", "conversations": said("<image>\nHi")}])
    with pytest.raises(PumiceError, match=r"z.zip, a.png: damaged"):
        source(root, "x.json", media="z.zip").sample(0)


# the index


def mixed(root: Path) -> Path:
    """Ten good records (two alike, one with a literal marker), and one each of what can't be used."""
    (root / "cut.png").write_bytes((root / "a.png").read_bytes()[:20])
    good = [{"image": f"{'abcd'[i % 4]}.png", "conversations": said("<image>\nWhat?", "x" * i)} for i in range(1, 9)]
    good += [good[0], {"conversations": said("What does <image> mean?")}]
    bad = [
        {"image": "cut.png", "conversations": said("<image>\nWhat?")},
        {"image": "a.png", "conversations": said("What?")},
        {"conversations": [{"from": "human", "value": "Hi"}]},
        {"conversations": said("Hi", "long " * 300)},
        {"conversations": said("half of a pair: \ud83d")},
    ]
    return write(root / "mixed.json", [*good, *bad])


def test_the_index_says_what_encoding_gives(root, processor):
    mixed(root)
    processor = dataclasses.replace(processor, max_tokens=600)
    found = source(root, "mixed.json")
    index = build_index(found, "mine", processor, root / "cache")
    assert index.usable.tolist() == list(range(10))
    assert index.problem[10:].tolist() == ["unreadable", "unreadable", "no loss", "too long", "unreadable"]
    assert "cut.png" in index.detail[10]
    assert "the limit is 600" in index.detail[13]
    assert index.duplicates == 1
    assert index.literal.nonzero()[0].tolist() == [9]
    assert "isn't Unicode" in index.detail[14]
    for row in index.usable:
        features = encode(found.sample(int(row)), processor)
        assert index.columns["tokens"][row] == len(features)
        assert index.columns["views"][row] == len(features.tiles)
        assert index.columns["supervised"][row] == (features.labels != IGNORE).sum()


def test_a_killed_index_goes_on_and_a_changed_file_begins_again(root, processor, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 4)
    path = mixed(root)
    seen: list[int] = []

    def killed(done, total):
        seen.append(done)
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(source(root, path.name), "mine", processor, root / "cache", progress=killed)
    seen.clear()
    index = build_index(
        source(root, path.name), "mine", processor, root / "cache", progress=lambda done, _: seen.append(done)
    )
    assert seen == [8, 12, 15]  # the first eight rows were there
    whole = build_index(source(root, path.name), "mine", processor, root / "other")
    for key, column in whole.columns.items():
        assert np.array_equal(index.columns[key], column), key
    os.utime(path, ns=(1, 1))
    seen.clear()
    build_index(source(root, path.name), "mine", processor, root / "cache", progress=lambda done, _: seen.append(done))
    assert seen == [0, 4, 8, 12, 15]
    other = dataclasses.replace(processor, max_tokens=600)
    assert build_index(source(root, path.name), "mine", other, root / "cache").problem[13] == "too long"


def test_an_index_is_of_the_rows_that_were_chosen_and_of_their_media(root, processor):
    write(root / "x.json", [{"conversations": said("Hi", "x " * (i % 7))} for i in range(20)])

    def found(**more) -> tuple[list[int], list[int]]:
        mine = source(root, "x.json", **more)
        index = build_index(mine, "mine", processor, root / "cache")
        return index.columns["tokens"].tolist(), [len(encode(mine.sample(row), processor)) for row in range(len(mine))]

    for sampling in ("first:4", "end:4", "random:4"):
        indexed, encoded = found(sampling=sampling)
        assert indexed == encoded, sampling
    other = open_source("mine", DataConfig("llava", "x.json", sampling="random:4"), root, seed=1)
    tokens = build_index(other, "mine", processor, root / "cache").columns["tokens"]
    assert tokens.tolist() == [len(encode(other.sample(row), processor)) for row in range(4)]
    (root / "empty").mkdir()
    write(root / "y.json", [{"image": "a.png", "conversations": said("<image>\nHi")}])
    assert build_index(source(root, "y.json", media="empty"), "mine", processor, root / "cache").problem[0]
    assert not build_index(source(root, "y.json"), "mine", processor, root / "cache").problem[0]


def test_an_edited_caption_is_indexed_anew(root, processor):
    (root / "inner").mkdir()
    (root / "a.png").rename(root / "inner" / "a.png")
    (root / "inner" / "a.txt").write_text("Dark.")
    before = build_index(source(root, ".", "captions"), "mine", processor, root / "cache").columns["tokens"][0]
    (root / "inner" / "a.txt").write_text("A dark square, and more of it than there was.")
    assert build_index(source(root, ".", "captions"), "mine", processor, root / "cache").columns["tokens"][0] > before


def test_several_processes_make_the_same_index(root, processor, monkeypatch):
    monkeypatch.setattr(indexing, "PART", 4)
    mixed(root)
    one = build_index(source(root, "mixed.json"), "mine", processor, root / "one")
    two = build_index(source(root, "mixed.json"), "mine", processor, root / "two", workers=2)
    assert two.detail == one.detail
    assert all(np.array_equal(two.columns[key], one.columns[key]) for key in one.columns)


def test_long_samples_are_cut_at_the_right_but_never_in_a_picture(root, processor):
    write(root / "x.json", [{"image": "a.png", "conversations": said("<image>\nWhat?", "long " * 150)}])
    sample = source(root, "x.json").sample(0)
    whole = encode(sample, processor)
    visual = int((whole.ids == IMAGE).sum())
    short = dataclasses.replace(processor, max_tokens=200, cut=True)
    kept = encode(sample, short)
    assert len(kept) == 200 < len(whole)
    assert kept.ids.equal(whole.ids[:200])
    assert kept.labels.equal(whole.labels[:200])
    assert measure(source(root, "x.json"), 0, short).tokens == 200
    inside = dataclasses.replace(processor, max_tokens=visual // 2, cut=True)
    with pytest.raises(PumiceError, match="fewer or smaller pictures"):
        encode(sample, inside)
    assert measure(source(root, "x.json"), 0, inside).problem == "too long"


def test_the_report_counts_and_shows_the_worst(root, processor, capsys):
    from pumice.data.index_report import print_report, summary

    mixed(root)
    index = build_index(
        source(root, "mixed.json"), "mine", dataclasses.replace(processor, max_tokens=600), root / "cache"
    )
    found = summary(index)
    assert (found["rows"], found["usable"], found["duplicates"], found["literal_markers"]) == (15, 10, 1, 1)
    assert {kind: problem["rows"] for kind, problem in found["problems"].items()} == {
        "no loss": 1, "too long": 1, "unreadable": 3,
    }  # fmt: skip
    assert found["longest"][0] == int(np.argmax(np.where(index.problem == "", index.columns["tokens"], 0)))
    assert found["tokens"]["total"] == index.columns["tokens"][:10].sum()
    print_report({"mine": index})
    shown = "".join(capsys.readouterr().out.split())
    assert "10of15samplescanbeused" in shown
    assert "record11:1picturesorvideos" in shown


def test_the_command_indexes_a_recipe(root, tmp_path, monkeypatch, capsys):
    from test_recipes import RECIPES, stand_in

    from pumice import cli
    from pumice.config import load_recipe

    path = RECIPES / "elva-160m.toml"
    overrides = stand_in(load_recipe(path), tmp_path)
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    given = ["data", "index", str(path), *overrides, "--data", str(tmp_path / "data"), "--workers", "1"]
    assert cli.main([*given, "--stage", "instruct", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["source"], found["usable"]) == ("mix_665k", 5)
    assert cli.main([*given, "--stage", "dance"]) == cli.MISTAKE
    assert "no stage 'dance'; the recipe has align, instruct" in capsys.readouterr().err
    assert cli.main([*given, "--json"]) == 0  # one document, whatever the number of stages
    assert [(one["stage"], one["source"]) for one in json.loads(capsys.readouterr().out)] == [
        ("align", "blip_558k"), ("instruct", "mix_665k"),
    ]  # fmt: skip


def test_the_command_looks_again_for_what_was_missing_and_into_stages_that_draw_too(
    root, tmp_path, monkeypatch, capsys
):
    from test_recipes import RECIPES, stand_in

    from pumice import cli
    from pumice.config import load_recipe

    overrides = stand_in(load_recipe(RECIPES / "elva-160m.toml"), tmp_path)
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    write(root / "x.json", [{"image": "z.png", "conversations": said("<image>\nHi")}])
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'base = "{RECIPES / "elva-160m.toml"}"\n[data.mine]\nformat = "llava"\npath = "x.json"\n'
        "[stages]\nalign = false\ninstruct = false\n[stages.both]\nobjective = 'answer'\nlr = { lm = 1e-3 }\n"
        "data = { mine = 1, receipts = 1 }\nsteps = 2\nbatch = 4\n"
    )
    parts = [text for text in overrides if text.startswith("model.")]
    given = ["data", "index", str(recipe), *parts, "--data", str(root), "--workers", "1", "--json"]
    assert cli.main(given) == 0, capsys.readouterr().err
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["source"], found["usable"], found["problems"]["unreadable"]["rows"]) == ("mine", 0, 1)
    (root / "a.png").rename(root / "z.png")
    assert cli.main(given) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["usable"], found["problems"]) == (1, {})


# stores and shards


def packed(root: Path, kind: str) -> str:
    """The root's pictures in an archive, and nowhere else."""
    import tarfile
    import zipfile

    names = [f"{name}.png" for name in "abcd"]
    target = root / f"media.{kind}"
    if kind == "tar":
        with tarfile.open(target, "w") as archive:
            for name in names:
                archive.add(root / name, name)
    elif kind == "zip":
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.write(root / name, name)
    elif kind == "lmdb":
        lmdb = pytest.importorskip("lmdb")
        with lmdb.open(str(target), map_size=1 << 22) as store, store.begin(write=True) as transaction:
            for name in names:
                transaction.put(name.encode(), (root / name).read_bytes())
    else:
        import fsspec

        for name in names:
            with fsspec.open(f"memory://bucket/{name}", "wb") as file:
                file.write((root / name).read_bytes())
        target = "memory://bucket"
    for name in names:
        (root / name).unlink()
    return target if isinstance(target, str) else target.name


@pytest.mark.parametrize("kind", ["tar", "zip", "lmdb", "memory"])
def test_media_lie_in_archives_and_elsewhere(root, processor, kind):
    import pickle

    records = [
        {"id": str(i), "image": f"{n}.png", "conversations": said("<image>\nWhat?")} for i, n in enumerate("badx")
    ]
    write(root / "x.json", records)
    found = source(root, "x.json")
    wanted = [encode(found.sample(row), processor).tiles for row in range(3)]
    place = packed(root, kind)
    stored = source(root, "x.json", media=place)
    for again in (stored, pickle.loads(pickle.dumps(stored))):  # as it goes to other processes
        for row in range(3):
            assert encode(again.sample(row), processor).tiles.equal(wanted[row])
        with pytest.raises(PumiceError, match=r"x.json, record 3: .*x.png"):
            again.sample(3)
    index = build_index(stored, "mine", processor, root / "cache")
    assert index.usable.tolist() == [0, 1, 2]
    assert index.duplicates == 0  # pictures of one size that have no file name are told apart by their bytes


def test_archives_that_are_damaged_or_missing_are_named(root):
    write(root / "x.json", [{"image": "a.png", "conversations": said("<image>\nWhat?")}])
    for kind in ("tar", "zip"):
        name = packed(root, kind) if kind == "tar" else "media.zip"
        (root / name).write_bytes((root / "media.tar").read_bytes()[:700] if kind == "tar" else b"PK no")
        with pytest.raises(PumiceError, match=rf"media.{kind}: (cut short|not)"):
            source(root, "x.json", media=name).sample(0)
    with pytest.raises(PumiceError, match=r"gone.zip: no such archive"):
        source(root, "x.json", media="gone.zip")


def test_webdataset_shards(root, processor):
    import tarfile

    (root / "shards").mkdir()
    record = {"conversations": said("<image>\nWhat?")}
    for shard, names in enumerate(["ab", "cd"]):
        with tarfile.open(root / "shards" / f"{shard}.tar", "w") as archive:
            for name in names:
                archive.add(root / f"{name}.png", f"{name}.png")
                text = root / (f"{name}.json" if shard == 0 else f"{name}.txt")
                text.write_text(json.dumps({**record, "id": name}) if shard == 0 else f"Picture {name}.\n")
                archive.add(text, text.name)
    found = source(root, "shards", "webdataset")
    assert [found.sample(row).id for row in range(4)] == ["a", "b", "mine-c", "mine-d"]
    assert found.sample(3).turns[1].content == ("Picture d.",)
    write(root / "x.json", [{"image": "b.png", "conversations": said("<image>\nWhat?")}])
    wanted = encode(source(root, "x.json").sample(0), processor)
    assert encode(found.sample(1), processor).tiles.equal(wanted.tiles)
    assert [source(root, "shards", "webdataset", sampling="end:1").sample(0).id] == ["mine-d"]
    with tarfile.open(root / "shards" / "2.tar", "w") as archive:
        archive.add(root / "a.png", "lonely.png")
    with pytest.raises(PumiceError, match=r"2.tar, lonely: files lonely.png; expected a .json"):
        source(root, "shards", "webdataset").sample(4)
