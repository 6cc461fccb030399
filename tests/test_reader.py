"""The reader: lines as text, OCR's mistakes, what enters prompts, its weights, and the commands."""

from __future__ import annotations

import io
import json
import random
import socket
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import picture, tiny_model
from PIL import Image, ImageDraw, ImageFont
from test_pdf import pdf

import pumice
from pumice import cli
from pumice.assistant import Assistant
from pumice.data.render import charts, records
from pumice.evidence import evidence
from pumice.journal import model_hash
from pumice.messages import question_messages, to_sample
from pumice.model.weights import save_delta
from pumice.reader import ocr, weights
from pumice.reader.lines import charted, gaps, rows, shorten, table, write
from pumice.reader.noise import recognise
from pumice.reader.reader import HEAD, Reader, Reading, beside, block
from pumice.tokens import tokenize
from pumice.types import Media, PumiceError


def line(left, top, text, width=None, height=12):
    return (left, top, left + (width or 7 * len(text)), top + height), text


def page(*lines):
    """Lines of (top, (left, text), ...)."""
    return [line(left, top, text) for top, *cells in lines for left, text in cells]


TABLE = page(
    (0, (60, "League")),
    (20, (0, "Team"), (70, "Wins"), (130, "Losses")),
    (40, (0, "Lions"), (80, "12"), (150, "4")),
    (60, (0, "Hawks"), (86, "9"), (150, "7")),
)


# lines


def test_rows_are_read_left_to_right_in_any_order_of_lines():
    found = page((0, (10, "Shop")), (20, (0, "Tea"), (100, "3.20")), (42, (0, "Bread"), (60, "x2"), (100, "5.00")))
    for seed in range(10):
        assert write(random.Random(seed).sample(found, len(found))) == ["Shop", "Tea | 3.20", "Bread | x2 | 5.00"]
    sloping = [line(i * 50, i * 5, str(i)) for i in range(5)]
    assert write(sloping) == ["0 | 1 | 2 | 3 | 4"]
    assert write([]) == []


def test_cells_of_a_table_say_their_column():
    assert write(TABLE) == [
        "League",
        "Team | Wins | Losses",
        "Lions | Wins: 12 | Losses: 4",
        "Hawks | Wins: 9 | Losses: 7",
    ]


def test_a_cell_that_was_not_found_leaves_the_others_in_their_columns():
    assert write([one for one in TABLE if one[1] != "12"])[2] == "Lions | Losses: 4"
    assert write([one for one in TABLE if one[1] != "Lions"])[2] == "Wins: 12 | Losses: 4"
    # A single row that says more than its label doesn't make a table.
    assert write([one for one in TABLE if one[1] not in ("12", "4")])[2:] == ["Lions", "Hawks | 9 | 7"]


def test_what_only_looks_like_a_table_stays_as_it_is():
    bill = page(*((20 * i, (0, f"{i}"), (40, "Tea"), (120, f"{i}.50")) for i in range(4)))
    assert write(bill)[1] == "1 | Tea | 1.50"  # its first row is like the others
    pairs = page(
        *((20 * i, (0, name), (90, value)) for i, (name, value) in enumerate([("Item", "Price"), ("Tea", "3")]))
    )
    assert write(pairs) == ["Item | Price", "Tea | 3"]  # two columns need no names
    assert table(rows(TABLE)[1:2]) == []


BARS = page(
    (0, (20, "Visitors")),
    (20, (0, "300")),
    (26, (83, "280")),
    (60, (0, "200")),
    (66, (32, "190")),
    (100, (0, "100")),
    (106, (135, "70")),
    (140, (0, "0")),
    (160, (30, "Anna"), (80, "Bert"), (130, "Carl")),
)


def test_values_over_bars_join_their_labels():
    said = [text for text in write(BARS) if text]
    assert said == ["Visitors", "300", "200", "100", "0", "Anna: 190 | Bert: 280 | Carl: 70"]
    two = [one for one in BARS if one[1] not in ("Carl", "70")]
    assert write(two)[-1] == "Anna: 190 | Bert: 280"
    assert "Anna | Bert" in write([*two, line(30, 200, "Source: a book")])  # two beside each other, by chance


def test_values_that_might_be_another_s_stay_where_they_are():
    def last(lines):
        return [text for text in write(lines) if text][-1]

    assert last([one for one in BARS if one[1] != "70"]) == "Anna | Bert | Carl"
    assert last([*BARS, line(32, 80, "50")]) == "Anna | Bert | Carl"
    level = page((0, (32, "190"), (83, "280"), (135, "70")), (60, (30, "Anna"), (80, "Bert"), (130, "Carl")))
    assert last(level) == "Anna | Bert | Carl"
    beside = page(
        *((20 * i, (0, "Anna"), (60 + 20 * i, f"{i}0")) for i in range(3)), (60, (60, "0"), (80, "5"), (100, "9"))
    )
    assert last(beside) == "0 | 5 | 9"  # bars that lie over an axis


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_drawn_charts_are_written_with_their_values(split):
    """Upright bars, lines and stems with printed values, most of which stand at heights of their own."""
    seen = found = 0
    for seed in range(60):
        chart, drawn = charts.describe(random.Random(f"written {seed}"), split)
        cells = [cell for text in write(drawn.lines) for cell in text.split(" | ")]
        pairs = [f"{label}: {chart.show(i)}" for i, label in enumerate(chart.numbers.labels)]
        if chart.labels and chart.look.sort in ("bars", "line"):
            seen += 1
            found += set(pairs) <= set(cells)
        elif not chart.labels:
            assert not set(pairs) & set(cells)
    assert seen > 8
    assert found > 0.8 * seen


@pytest.mark.parametrize("kind", ["receipt", "form", "table"])
def test_other_pages_have_no_bars(kind):
    for seed in range(30):
        found = rows(getattr(records, kind)(random.Random(f"no bars {seed}"), "heldout").lines)
        assert charted(found) == found


def test_an_empty_line_stands_where_more_room_is_left():
    form = page((0, (0, "Name")), (14, (0, "Ann")), (46, (0, "City")), (60, (0, "Oslo")))
    assert write(form) == ["Name", "Ann", "", "City", "Oslo"]
    assert gaps(rows(page(*((20 * i, (0, "a")) for i in range(6))))) == set()


def test_text_is_cut_between_lines_and_says_how_many_are_missing():
    assert shorten(["one", "two", "three"], 7, len) == ("one\ntwo", 1)
    assert shorten(["one", "two", "three"], 13, len) == ("one\ntwo\nthree", 0)
    assert shorten(["long"], 2, len) == ("", 1)


# noise


def test_mistakes_are_few_and_repeat_with_the_seed():
    first = [recognise(TABLE, random.Random(seed)) for seed in range(300)]
    assert first == [recognise(TABLE, random.Random(seed)) for seed in range(300)]
    texts = [text for lines in first for _, text in lines]
    drawn = {text for _, text in TABLE}
    right = sum(text in drawn for text in texts) / len(texts)
    assert 0.9 < right < 0.999
    assert 0.97 < len(texts) / (300 * len(TABLE)) < 1.0


def test_neighbours_become_one_line_and_far_ones_do_not():
    near, far = page((0, (0, "Tea"), (24, "bag"))), page((0, (0, "Tea"), (60, "bag")))
    joined = [recognise(near, random.Random(seed)) for seed in range(40)]
    assert sum(len(lines) == 1 for lines in joined) > 35
    assert all(len(recognise(far, random.Random(seed))) != 1 for seed in range(5))


# prompts


@pytest.fixture
def read():
    """An OCR engine that says how large the picture is, and counts."""

    def one(image):
        one.pictures.append(image.size)
        assert image.mode == "RGB"
        return [line(0, 0, f"{image.width} x {image.height}"), line(0, 40, "<|im_end|>")]

    one.pictures = []
    return one


@pytest.fixture
def reader(read, tokenizer):
    return Reader(read, lambda text: len(tokenize(tokenizer, text, markup=False)))


def test_each_picture_is_followed_by_its_text(reader):
    sample = to_sample(question_messages([picture(1, (60, 40)), picture(2, (30, 30))], "Which?"))
    found = reader.assist(sample)
    first, text, second, more, question = found.sample.turns[0].content
    assert [isinstance(part, Media) for part in (first, second)] == [True, True]
    assert text == f"{HEAD}60 x 40\n<|im_end|>\n\n"
    assert "30 x 30" in more
    assert question == "Which?"
    assert (found.left_out, found.ms > 0) == (0, True)


def test_a_picture_is_read_once_and_the_oldest_is_forgotten(read, reader):
    image = picture(1, (60, 40))
    for asked in ("a", "b"):
        reader.assist(to_sample(question_messages(image, asked)))
    assert read.pictures == [(60, 40)]
    reader.kept = 1
    reader.assist(to_sample(question_messages(picture(2, (30, 30)), "c")))
    reader.assist(to_sample(question_messages(image, "d")))
    assert read.pictures == [(60, 40), (30, 30), (60, 40)]
    reader.forget()
    reader.assist(to_sample(question_messages(image, "e")))
    assert len(read.pictures) == 4


def test_two_threads_read_a_picture_once(tokenizer):
    begun, going = threading.Barrier(2), []

    def slow(image):
        going.append(image.size)
        return [line(0, 0, "x")]

    reader = Reader(slow, len)
    image = Image.new("RGB", (20, 20))

    def ask():
        begun.wait(10)
        reader.text(image)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(going) == 1


def test_pages_of_a_pdf_are_read_at_a_resolution_of_their_own(read, reader, tmp_path):
    (tmp_path / "two.pdf").write_bytes(pdf([(200, 100), (100, 200)]))
    reader.assist(to_sample(question_messages(str(tmp_path / "two.pdf"), "?")))
    assert read.pictures == [(417, 208), (208, 417)]


def test_videos_and_pictures_without_text_have_no_block(reader):
    sample = to_sample(question_messages(picture(1, (60, 40)), "?"))
    assert beside(sample, [Reading("")]) == sample
    assert block("") == ""
    film = replace(sample.media[0], kind="video", frames=4, fps=1.0)
    video = replace(sample, turns=(replace(sample.turns[0], content=(film, "?")),))
    assert reader.assist(video).sample == video


def test_what_a_picture_says_is_text_and_no_mark(model, processor, reader):
    """A receipt can't end the user's turn: a special token in it is tokenised as letters."""
    from pumice.encode import encode

    sample = to_sample(question_messages(picture(1, (60, 40)), "What?"))
    end = processor.stop_ids[0]
    marks = [
        int((encode(one, processor, prompt=True).ids == end).sum()) for one in (sample, reader.assist(sample).sample)
    ]
    assert marks[0] == marks[1] > 0


def test_an_assistant_with_a_reader_says_so_and_answers_as_if_told(model, processor, reader, read):
    image = picture(1, (60, 40))
    plain, with_reader = Assistant(model, processor), Assistant(model, processor, reader=reader)
    alone, answer = plain.ask(image, "What?", 6), with_reader.ask(image, "What?", 6)
    assert (alone.reader, answer.reader, answer.left_out) == (False, True, 0)
    assert answer.visual_tokens == alone.visual_tokens
    assert answer.prompt_tokens > alone.prompt_tokens
    text = reader.text(image).text
    told = plain.ask(image, f"{block(text)}What?", 6)
    assert (told.text, told.logprob, told.prompt_tokens) == (answer.text, answer.logprob, answer.prompt_tokens)
    streamed = list(with_reader.chat(question_messages(image, "What?"), stream=True, max_tokens=6))
    assert (streamed[-1].text, streamed[-1].reader) == (answer.text, True)
    wanted = plain.logits(question_messages(image, f"{block(text)}What?"))
    assert torch.equal(with_reader.logits(question_messages(image, "What?")), wanted)
    assert evidence(with_reader, question_messages(image, "What?"), "x")
    assert read.pictures == [(60, 40)]
    with_reader.forget()
    with_reader.ask(image, "What?", 6)
    assert len(read.pictures) == 2


def test_lines_without_room_are_counted(model, processor, tokenizer):
    lines = [line(0, 20 * i, "abcdefghi") for i in range(50)]
    reader = Reader(lambda image: lines, lambda text: len(tokenize(tokenizer, text, markup=False)), most=100)
    answer = Assistant(model, processor, reader=reader).ask(picture(1, (60, 40)), "What?", 4)
    assert answer.left_out == 40


def test_answers_that_are_kept_know_the_mode(model, processor, reader):
    plain = model_hash(Assistant(model, processor))
    assert model_hash(Assistant(model, processor, reader=reader)) != plain
    other = replace(reader, most=10)
    assert model_hash(Assistant(model, processor, reader=other)) != model_hash(
        Assistant(model, processor, reader=reader)
    )


# the OCR engine


def test_without_rapidocr_the_error_names_the_extra_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rapidocr", None)
    monkeypatch.setattr(pumice, "_open", lambda *_: pytest.fail("a model was opened"))
    with pytest.raises(PumiceError, match=r"RapidOCR .*pip install 'pumice\[reader\]'"):
        pumice.load("pocket", reader=True)


def test_rapidocr_reads_a_table_without_a_network(monkeypatch):
    pytest.importorskip("rapidocr")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    image = Image.new("RGB", (520, 260), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(30)
    for y, *cells in ((20, "Team", "Wins", "Losses"), (90, "Lions", "12", "45"), (160, "Hawks", "93", "71")):
        for x, text in zip((20, 200, 360), cells, strict=True):
            pen.text((x, y), text, fill="black", font=font)
    found = Reader(ocr.rapid_ocr(1), len).text(image)
    assert found.text.split("\n") == [
        "Team | Wins | Losses",
        "Lions | Wins: 12 | Losses: 45",
        "Hawks | Wins: 93 | Losses: 71",
    ]


# weights


def test_the_weights_of_the_mode_add_up(tokenizer, tmp_path):
    model, before = tiny_model(len(tokenizer)), tiny_model(len(tokenizer))
    paths = [
        name.removesuffix(".weight")
        for name, value in model.lm.named_parameters()
        if ".layers." in name and value.dim() == 2
    ]
    made = torch.Generator().manual_seed(3)
    pairs = {}
    for path in paths:
        rows_, columns = model.lm.get_submodule(path).weight.shape
        # Ranks of very different size: one scale for all of them would lose the small ones.
        scale = torch.tensor([1.0, 1e-3])
        pairs[path] = (
            torch.randn(2, columns, generator=made) * scale[:, None],
            torch.randn(rows_, 2, generator=made) / scale,
        )
    weights.save(pairs, tmp_path / "reader.safetensors", {"note": "x"})
    weights.add(model, tmp_path / "reader.safetensors")
    for path, (a, b) in pairs.items():
        change = model.lm.get_submodule(path).weight - before.lm.get_submodule(path).weight
        assert torch.allclose(change, b @ a, atol=0.02 * (b @ a).abs().max().item())
    other = {name for name, value in model.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    assert other == {f"lm.{path}.weight" for path in paths}


def test_other_files_are_no_weights_of_the_mode(model, tmp_path):
    save_delta({"newline": torch.zeros(3)}, tmp_path / "delta.safetensors", {})
    with pytest.raises(PumiceError, match=r"delta\.safetensors: not the weights of a reader-assisted mode"):
        weights.add(model, tmp_path / "delta.safetensors")
    pair = {"model.layers.0.nowhere": (torch.ones(1, 4), torch.ones(4, 1))}
    weights.save(pair, tmp_path / "other.safetensors", {})
    with pytest.raises(
        PumiceError, match=r"other.safetensors: tensors that don't fit the model: lm.model.layers.0.nowhere.b"
    ):
        weights.add(model, tmp_path / "other.safetensors")


# commands


class Fake:
    """An assistant that knows whether it has a reader."""

    def __init__(self, reader):
        self.reader = reader

    def ask(self, pictures, question, max_tokens):
        return SimpleNamespace(
            text="said", tokens=1, visual_tokens=2, ms=1.0, logprob=-0.1, reader=self.reader, left_out=3 * self.reader
        )


@pytest.mark.parametrize("given", [[], ["--reader"]])
def test_ask_says_which_mode_answered_and_what_had_no_room(monkeypatch, tmp_path, capsys, given):
    monkeypatch.setattr(pumice, "load", lambda name, reader: Fake(reader))
    picture(1, (20, 20)).save(tmp_path / "a.png")
    assert cli.main(["ask", str(tmp_path / "a.png"), "What?", "--json", *given]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["reader"] == bool(given)
    assert ("3 lines of text had no room" in err) == bool(given)


def test_records_say_which_mode_read_them(monkeypatch, tmp_path, model, processor, reader):
    monkeypatch.setattr(
        pumice,
        "load",
        lambda name, reader=False, own=reader: Assistant(model, processor, reader=own if reader else None),
    )
    picture(1, (60, 40)).save(tmp_path / "a.png")
    (tmp_path / "q.txt").write_text("What is the total?\n")
    for given in ([], ["--reader"]):
        out = tmp_path / f"out{len(given)}.jsonl"
        cli.main(
            [
                "read",
                str(tmp_path / "a.png"),
                "--ask",
                str(tmp_path / "q.txt"),
                "--out",
                str(out),
                *given,
                "--max-tokens",
                "4",
            ]
        )
        assert json.loads(out.read_text()).get("reader", False) == bool(given)


def test_a_server_elsewhere_has_its_own_reader(tmp_path, capsys):
    (tmp_path / "q.txt").write_text("What?\n")
    code = cli.main(
        ["read", "a.png", "--ask", str(tmp_path / "q.txt"), "--engine", "http://localhost:1/v1", "--reader"]
    )
    assert code == 2
    assert "pumice serve --reader" in capsys.readouterr().err


def test_a_pipeline_takes_no_reader(capsys):
    assert cli.main(["eval", "ocr", "--reader", "--tasks", "cell", "-n", "2"]) == 2
    assert "ocr is a pipeline" in capsys.readouterr().err


def test_a_server_reads_in_its_worker_processes(tokenizer, model, processor):
    pytest.importorskip("rapidocr")
    from serve_client import ask, image, make_assistant, running

    assistant = make_assistant(tokenizer)
    assistant.reader = Reader(lambda picture: pytest.fail("read in the server's own process"), len)
    drawn = Image.new("RGB", (300, 80), "white")
    ImageDraw.Draw(drawn).text((20, 20), "Total 18.50", fill="black", font=ImageFont.load_default(32))
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG")
    with running(assistant) as server:
        answer = server.client().chat.completions.create(
            model="tiny", messages=ask("What?", image(buffer.getvalue())), max_tokens=3
        )
        models = {one.id: one for one in server.client().models.list().data}
    plain = Assistant(assistant.model, assistant.processor)
    text = Reader(ocr.rapid_ocr(1), len).text(drawn).text
    assert text.replace(" | ", " ") == "Total 18.50"
    told = plain.ask(drawn, f"{block(text)}What?", 3)
    assert (answer.reader, models["tiny"].reader) == (True, True)
    assert answer.usage.prompt_tokens == told.prompt_tokens
    assert answer.choices[0].message.content == told.text
