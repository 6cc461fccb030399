"""Near-duplicates, contamination, balance, and copies without what was found."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from pumice.cli import main
from pumice.config import DataConfig
from pumice.data.care import overlap
from pumice.data.care.categories import Balance, category, paper_shares, paper_visual_shares, response, visual_input
from pumice.data.care.check import DUPLICATE, PICTURE, TEXT, Work, check, drop_lines
from pumice.data.care.clean import Cleaned, read_drops
from pumice.data.care.near import near_between, near_pairs
from pumice.data.care.opening import open_path, open_paths, open_tests
from pumice.data.care.overlap import build_index
from pumice.data.care.page import to_html, to_json
from pumice.data.care.pictures import NEAR, picture_print, prints
from pumice.data.care.texts import NEAR_TEXT, grams, simhash, word_hashes, words
from pumice.data.importing.writing import write_entries
from pumice.data.parts import Made, Parts
from pumice.data.sources import open_source
from pumice.types import Media, PumiceError, Sample, Turn
from pumice.vision.media import open_image


def drawing(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A picture of its own for each seed."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(160, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = rng.randrange(size[0]), rng.randrange(size[1])
        box = (x, y, x + rng.randrange(8, 70), y + rng.randrange(8, 50))
        draw.rectangle(box, fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def said(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def write(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


LEAKED = "which of the eleven towers along the northern river was finished before the great flood"


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """(training data, a test set). Of the training data, rows 6 and 7 are copies of 0 and 1, row 8 asks something else
    about the picture of 2, row 9 shows the test set's picture, row 10 says the test set's words.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(8):
        drawing(seed).save(folder / f"{seed}.png")
    drawing(0).resize((400, 300)).save(folder / "scaled.jpg", quality=60)
    drawing(1).save(folder / "same.png")
    drawing(100).save(folder / "leak.jpg", quality=70)
    texts = [f"What is number {seed} of them, please?" for seed in range(6)]
    records = [
        {"id": f"s{i}", "image": f"{i}.png", "conversations": said(f"<image>\n{texts[i]}", "A box.")} for i in range(6)
    ]
    records += [
        {"id": "scaled", "image": "scaled.jpg", "conversations": said(f"<image>\n{texts[0]}", "A box.")},
        {"id": "same", "image": "same.png", "conversations": said(f"<image>\n{texts[1]}", "A box.")},
        {
            "id": "asks",
            "image": "2.png",
            "conversations": said("<image>\nHow many colours are there?", "Seven."),
        },
        {"id": "leak", "image": "leak.jpg", "conversations": said("<image>\nSo?", "So.")},
        {"id": "words", "conversations": said(f"Tell me: {LEAKED}?", "None of them.")},
        {"id": "gone", "image": "gone.png", "conversations": said("<image>\nWhat?", "That.")},
    ]
    exam = tmp_path / "exam"
    exam.mkdir()
    drawing(100).save(exam / "q.png")
    items = [
        {"id": "q0", "image": "q.png", "conversations": said("<image>\nWhich box is the largest?", "The blue one.")},
        {"id": "q1", "conversations": said(f"{LEAKED.title()}, do you think?", "The third.")},
    ]
    return write(folder / "train.jsonl", records), write(exam / "exam.jsonl", items)


def checked(data: tuple[Path, Path], cache: Path, **more):
    return check(open_paths([data[0]]), open_paths([data[1]]), Work(cache, **more))


# looking hashes up


@pytest.mark.parametrize("wide", [1, 5])
def test_all_near_hashes_are_found_and_no_other(wide):
    rng = np.random.default_rng(wide)
    base = rng.integers(0, 2**63, (40, wide), dtype=np.uint64)
    rows = [base]
    for bits in (1, 3, 4, 5):
        flipped = base.copy()
        for row in flipped:
            for bit in rng.choice(64, bits, replace=False):
                row[0] ^= np.uint64(1 << int(bit))
        rows.append(flipped)
    hashes = np.concatenate(rows)
    most = (4, 40)[: min(wide, 2)]

    def apart(a, b):
        return [int(np.bitwise_count(a[0] ^ b[0])), int(np.bitwise_count(a[1:] ^ b[1:]).sum())]

    wanted = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if all(bits <= limit for bits, limit in zip(apart(hashes[i], hashes[j]), most, strict=False))
    }
    assert {tuple(pair) for pair in near_pairs(hashes, most).tolist()} == wanted
    between = {(int(i), int(j) + 120) for i, j in near_between(hashes[:120], hashes[120:], most)}
    assert between == {(i, j) for i, j in wanted if i < 120 <= j}


def test_what_is_there_a_thousand_times_gives_as_many_pairs():
    pairs = near_pairs(np.full((1000, 1), 7, dtype=np.uint64), (6,))
    assert pairs.tolist() == [[0, i] for i in range(1, 1000)]


def test_the_second_hash_decides_where_the_first_is_shared():
    rows = np.array([[1, 0], [1, 2**60 - 1], [1, 1], [1, 2**60 - 1]], dtype=np.uint64)
    assert near_pairs(rows, (6, 4)).tolist() == [[0, 2], [1, 3]]


# pictures and texts


def bits_apart(one: list[int], other: list[int]) -> tuple[int, int]:
    differing = [(a ^ b).bit_count() for a, b in zip(one, other, strict=True)]
    return differing[0], sum(differing[1:])


@pytest.mark.parametrize("seed", range(5))
def test_a_picture_stays_near_to_itself_and_far_from_others(seed, tmp_path):
    image = drawing(seed, (320, 240))
    image.save(tmp_path / "jpeg.jpg", quality=30)
    (jpeg,) = prints(open_image(tmp_path / "jpeg.jpg"))
    changed = [
        jpeg,
        *map(
            picture_print,
            (
                image.resize((131, 99)),
                image.resize((900, 700)),
                ImageEnhance.Brightness(image).enhance(0.8),
                ImageEnhance.Contrast(image).enhance(1.3),
            ),
        ),
    ]
    for other in changed:
        coarse, fine = bits_apart(picture_print(image), other)
        assert coarse <= NEAR[0]
        assert fine <= NEAR[1]
    assert bits_apart(picture_print(image), picture_print(drawing(seed + 50)))[1] > 2 * NEAR[1] - 10


def test_the_coarse_hash_is_the_signs_of_the_lowest_frequencies():
    """Against scipy's DCT, written as pHash describes it."""
    fft = pytest.importorskip("scipy.fft")
    image = drawing(3)
    grey = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.LANCZOS, reducing_gap=3.0), dtype=float)
    lowest = fft.dct(fft.dct(grey, axis=0), axis=1)[1:9, 1:9]
    wanted = "".join("1" if value > np.median(lowest) else "0" for value in lowest.ravel())
    assert f"{picture_print(image)[0]:064b}" == wanted


def test_a_turned_jpeg_has_the_hash_of_what_is_seen(tmp_path):
    image = drawing(4)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=exif, quality=90)
    (found,) = prints(open_image(tmp_path / "turned.jpg"))
    assert bits_apart(found, picture_print(image))[1] <= NEAR[1]


def test_a_damaged_picture_is_an_error(tmp_path):
    drawing(1).save(tmp_path / "a.jpg")
    cut = (tmp_path / "a.jpg").read_bytes()[:900]
    with pytest.raises(PumiceError, match="damaged or cut short"):
        prints(open_image(cut))


def test_words_are_words_in_every_script():
    assert words("Don't  PANIC: it's 12.50 €, naïve!") == ["don", "t", "panic", "it", "s", "12", "50", "naïve"]
    assert words("这是中文 and 한국어") == ["这", "是", "中", "文", "and", "한", "국", "어"]
    assert words("ﬁne") == ["fine"]


def test_ngrams_are_equal_where_words_are():
    rng = random.Random(0)
    text = [rng.choice("abcde") for _ in range(300)]
    found = grams(word_hashes(" ".join(text)), 3)
    tuples = list(zip(text, text[1:], text[2:], strict=False))
    assert len(found) == len(tuples)
    assert len(set(found.tolist())) == len(set(tuples))
    assert all((found[i] == found[j]) == (tuples[i] == tuples[j]) for i in range(60) for j in range(60))


def test_near_texts_have_near_simhashes():
    rng = random.Random(1)
    text = [f"word{rng.randrange(5000)}" for _ in range(400)]
    changed = text.copy()
    changed[200] = "other"
    one, near_one = simhash(word_hashes(" ".join(text))), simhash(word_hashes(" ".join(changed)))
    far = simhash(word_hashes(" ".join(reversed(text))))
    assert (one ^ near_one).bit_count() <= NEAR_TEXT
    assert (one ^ far).bit_count() > 4 * NEAR_TEXT
    assert simhash(word_hashes("?!")) == 0


# the check


def test_what_was_planted_is_found_and_nothing_else(data, tmp_path):
    findings = checked(data, tmp_path / "cache")
    found = {(line["id"], line["why"], line["of"]["id"]) for line in drop_lines(findings)}  # type: ignore[index]
    assert found == {
        ("scaled", DUPLICATE, "s0"),
        ("same", DUPLICATE, "s1"),
        ("leak", PICTURE, "q0"),
        ("words", TEXT, "q1"),
    }
    assert findings.again == 1
    assert (findings.pictures, findings.distinct) == (10, 7)
    assert [row for row, _ in findings.signatures["train"].problems()] == [11]


def test_a_copy_of_a_dropped_copy_is_dropped_beside_what_stays(tmp_path):
    records = [
        {"id": str(i), "conversations": said("Say it.", text)} for i, text in enumerate(("a b c", "a b c", "a b c"))
    ]
    findings = check(open_paths([write(tmp_path / "t.jsonl", records)]), {}, Work(tmp_path / "cache"))
    assert [(pair.mine.row, pair.other.row) for pair in findings.pairs] == [(1, 0), (2, 0)]


def test_an_ngram_that_many_samples_share_says_nothing(tmp_path):
    prompt = "answer the question above with a single word or phrase and nothing but that please"
    tests = write(tmp_path / "exam.jsonl", [{"id": "q", "conversations": said(f"Colour? {prompt}", "Red")}])
    few, many = overlap.COMMON, overlap.COMMON + 1
    for count, dropped in ((few, few), (many, 0)):
        records = [
            {"id": str(i), "conversations": said(f"Question {i} of mine? {prompt}", f"{i}")} for i in range(count)
        ]
        train = write(tmp_path / f"train{count}.jsonl", records)
        findings = check(open_paths([train]), open_paths([tests]), Work(tmp_path / "cache"))
        assert findings.by_reason()[TEXT] == dropped
        assert bool(findings.common) == (not dropped)


def test_short_items_are_told_by_all_of_their_words_and_shorter_ones_not():
    index = build_index(["one two three four five six seven eight", "one two three four five six seven"])
    assert set(index.grams) == {8}
    assert index.shared(word_hashes("zero one two three four five six seven eight nine")).size == 1
    assert index.shared(word_hashes("one two three four five six seven nine eight")).size == 0


def test_a_stopped_check_goes_on_and_workers_change_nothing(data, tmp_path, monkeypatch):
    from pumice.data.care import signatures

    monkeypatch.setattr(signatures, "PART", 3)
    alone = checked(data, tmp_path / "one")
    several = checked(data, tmp_path / "two", workers=2)
    assert drop_lines(alone) == drop_lines(several)
    folder = next((tmp_path / "one").glob("train-????????????????"))
    parts = sorted(folder.glob("*.parquet"))
    assert len(parts) == 4
    assert [p.read_bytes() for p in parts] == [
        p.read_bytes() for p in sorted((tmp_path / "two" / folder.name).glob("*"))
    ]
    parts[1].unlink()
    times = [part.stat().st_mtime_ns for part in parts[2:]]
    assert drop_lines(checked(data, tmp_path / "one")) == drop_lines(alone)
    assert [part.stat().st_mtime_ns for part in parts[2:]] == times
    assert parts[1].is_file()


def test_a_job_that_fails_leaves_whole_parts_alone(tmp_path):
    def job(start: int, stop: int) -> Made:
        if start == 4:
            raise PumiceError("stop here")
        return Made(bytes([start]), {"rows": stop - start})

    parts = Parts(tmp_path / "p", 7, 2, ".bin")
    with pytest.raises(PumiceError, match="stop here"):
        parts.make(job)
    assert [path.read_bytes() for path in sorted((tmp_path / "p").glob("*.bin"))] == [b"\0", b"\2"]
    assert parts.notes() == {"rows": 4}


@pytest.mark.slow
def test_a_ray_cluster_finds_the_same(data, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    assert drop_lines(checked(data, tmp_path / "ray", where="ray", workers=1)) == drop_lines(
        checked(data, tmp_path / "one")
    )


def test_the_embedded_suite_is_a_test_set(tmp_path):
    tests = open_tests(["embedded:1"])
    source = tests["embedded"]
    row = next(i for i in range(len(source)) if source.sample(i).source == "receipts")
    (media,) = source.sample(row).media
    media.reference.convert("RGB").save(tmp_path / "leak.jpg", quality=50)
    train = write(
        tmp_path / "t.jsonl", [{"id": "a", "image": "leak.jpg", "conversations": said("<image>\nSo?", "So.")}]
    )
    findings = check(open_paths([train]), tests, Work(tmp_path / "cache"))
    assert findings.by_reason() == {PICTURE: 1}


def test_balance_counts_each_sample_once():
    picture = Media(b"", (4, 4))
    several = Sample((Turn("user", (picture, picture, "Which?")), Turn("assistant", ("The left one.",))))
    text = Sample((Turn("user", ("Tell me a story.",)), Turn("assistant", ("There was once a very small stone.",))))
    known = Sample(
        (Turn("user", (picture, "Total?")), Turn("assistant", ("12",))), source="chartqa(cauldron,llava_format)"
    )
    assert [visual_input(one) for one in (several, text, known)] == ["several pictures", "text", "one picture"]
    assert [category(one, "mine") for one in (several, text, known)] == ["other", "Language", "Doc/Chart/Screen"]
    assert category(several, "geo3k_2101") == "Math/Reasoning"
    assert [response(one) for one in (several, text, known)] == ["fixed", "free", "fixed"]
    from collections import Counter

    counts = Counter((visual_input(one), category(one, ""), response(one)) for one in (several, text, known))
    shown = Balance(counts).to_json()
    assert sum(row["samples"] for row in shown["category"]) == sum(row["samples"] for row in shown["visual"]) == 3


def test_the_papers_shares_add_up_to_one():
    assert sum(paper_shares().values()) == pytest.approx(1.0, abs=0.002)
    assert sum(paper_visual_shares().values()) == pytest.approx(1.0, abs=0.002)


# the report, and the copy


def test_the_page_shows_both_sides_and_runs_nothing(data, tmp_path):
    findings = checked(data, tmp_path / "cache")
    page = to_html(findings, "pumice data check '<script>'")
    assert page.count("data:image/webp") == 6  # two pictures a pair of three
    assert "<script" not in page
    assert "default-src 'none'" in page
    found = to_json(findings)
    assert found["dropped"] == {DUPLICATE: 2, PICTURE: 1, TEXT: 1}
    assert found["in_test_sets"] == {"exam": 2}
    json.dumps(found)


def test_a_copy_without_what_was_found_has_the_same_samples(data, tmp_path):
    findings = checked(data, tmp_path / "cache")
    listed = write(tmp_path / "drop.jsonl", drop_lines(findings))
    source = open_path(data[0], "train")
    drops = read_drops(listed, ["train"])["train"]
    written = write_entries(Cleaned(source, drops, None), tmp_path / "out", "train")
    assert written.counts["written"] == 7
    assert written.counts["left out: duplicate"] == 2
    assert written.counts["left out: unreadable"] == 1
    again = open_source("train", DataConfig("llava", str(written.path), str(written.media)), Path())
    kept = [row for row in range(len(source)) if row not in drops and row != 11]
    assert [again.sample(i).turns for i in range(len(again))] == [source.sample(row).turns for row in kept]
    with pytest.raises(PumiceError, match="there is such a file"):
        write_entries(Cleaned(source, drops, None), tmp_path / "out", "train")


def tar_of(path: Path) -> Path:
    import tarfile

    with tarfile.open(path, "w") as tar:
        for i in range(3):
            buffer = io.BytesIO()
            drawing(i).save(buffer, "PNG")
            said_here = {"id": f"t{i}", "conversations": said("<image>\nWhat is it?", f"Drawing {i}.")}
            for name, data in ((f"{i}.png", buffer.getvalue()), (f"{i}.json", json.dumps(said_here).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def test_a_copy_of_shards_embeds_their_pictures(tmp_path):
    source = open_path(tar_of(tmp_path / "shard.tar"), "shard")
    written = write_entries(Cleaned(source, {1: DUPLICATE}, None), tmp_path / "out", "shard")
    assert written.format == "parquet"
    again = open_source("shard", DataConfig("parquet", str(written.path)), Path())
    assert [again.sample(i).id for i in range(len(again))] == ["t0", "t2"]
    for i, row in ((0, 0), (1, 2)):
        assert again.sample(i).turns[0].content[1:] == source.sample(row).turns[0].content[1:]
        assert again.sample(i).media[0].reference == source.sample(row).media[0].reference


def test_captions_in_a_folder_are_copied_by_name(tmp_path):
    folder = tmp_path / "captioned"
    folder.mkdir()
    drawing(1).save(folder / "a.png")
    (folder / "a.txt").write_text("A drawing of boxes.")
    source = open_path(folder, "captioned")
    written = write_entries(Cleaned(source, {}, None), tmp_path / "out", "captioned")
    again = open_source("x", DataConfig("llava", str(written.path), str(written.media)), Path())
    assert again.sample(0).turns[1] == source.sample(0).turns[1]
    assert Path(again.sample(0).media[0].reference) == folder / "a.png"


def test_commands_from_check_to_clean(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    drop, page = tmp_path / "drop.jsonl", tmp_path / "check.html"
    against = ["--against", str(data[1]), "--workers", "1"]
    assert main(["data", "check", str(data[0]), *against, "--write-clean", str(drop), "--html", str(page)]) == 0
    assert "to drop: duplicate" in capsys.readouterr().out
    assert len(drop.read_text().splitlines()) == 4
    assert page.read_text().startswith("<!doctype html>")
    out = ["--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["data", "clean", str(data[0]), "--drop", str(drop), *out]) == 0
    assert '[data.train]\nformat = "llava"' in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "out" / "train.jsonl"), *against, "--json"]) == 0


@pytest.mark.parametrize(
    ("argv", "wrong"),
    [
        (["check", "nowhere.jsonl"], "no such file or folder"),
        (["check", "{train}", "--against", "embedded:none"], "expected embedded, or embedded:N"),
        (["check", "{train}", "--html", "no/folder/x.html"], "can't be written"),
        (["check", "{train}", "--personal", "XX"], "no region"),
        (["clean", "{train}", "--out", "{out}"], "nothing to do"),
        (["clean", "{train}", "--drop", "{exam}", "--out", "{out}"], "expected {source, row, why}"),
        (["check", "recipes/pocket.toml"], "draw their pictures"),
    ],
)
def test_mistakes_are_one_line(argv, wrong, data, tmp_path, capsys):
    named = {"{train}": str(data[0]), "{exam}": str(data[1]), "{out}": str(tmp_path / "o")}
    assert main(["data", *[named.get(word, word) for word in argv]]) == 2
    error = capsys.readouterr().err
    assert wrong in error
    assert error.count("\n") == 1


def test_parts_of_other_settings_are_not_taken_for_these(tmp_path):
    pytest.importorskip("phonenumbers")
    from pumice.data.care.personal import Scrubber

    source = open_path(tar_of(tmp_path / "shard.tar"), "shard")
    write_entries(Cleaned(source, {1: DUPLICATE}, None), tmp_path / "out", "shard")
    for other in (Cleaned(source, {1: DUPLICATE}, Scrubber()), Cleaned(source, {}, None)):
        with pytest.raises(PumiceError, match="begun from other data or with other settings"):
            write_entries(other, tmp_path / "out", "shard")
    again = write_entries(Cleaned(source, {1: DUPLICATE}, None), tmp_path / "out", "shard")
    assert again.counts["written"] == 2


def test_a_text_that_isnt_unicode_is_left_out_of_parquet(tmp_path):
    import tarfile

    record = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "half \ud83d"}]}
    for name, said in (
        ("a", record),
        ("b", {"conversations": [record["conversations"][0], {"from": "gpt", "value": "x"}]}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(said))
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in "ab":
            archive.add(tmp_path / f"{name}.json", f"{name}.json")
    written = write_entries(Cleaned(open_path(tmp_path / "x.tar", "x"), {}, None), tmp_path / "o", "x")
    assert written.counts == {"written": 1, "left out: not Unicode": 1}
