"""Read, then reason: which samples read first, what they read, and that an index knows."""

from __future__ import annotations

import pytest
from test_data import root, said, source, write  # noqa: F401 (root is a fixture)

from pumice.config import ReadConfig
from pumice.data.index import build_index, index_folder
from pumice.data.reading import READ, ReadingSource, read_first, shorten
from pumice.data.rendered import text_of
from pumice.encode import encode
from pumice.types import IGNORE, Glyph, Media, Sample, Turn

PICTURE = Media("p", (30, 30), name="p")


def sample(id: str = "x", reading: str = "Total 12.50", media: tuple[Media, ...] = (PICTURE,)) -> Sample:
    return Sample((Turn("user", (*media, "What?")), Turn("assistant", ("12.50",))), id=id, reading=reading)


def test_the_reading_stands_before_the_question(tokenizer):
    found = read_first(sample(), ReadConfig(1.0), tokenizer, 0)
    assert [turn.content for turn in found.turns] == [(PICTURE, READ), ("Total 12.50",), ("What?",), ("12.50",)]
    assert [turn.role for turn in found.turns] == ["user", "assistant", "user", "assistant"]


def test_the_share_is_a_function_of_seed_and_id(tokenizer):
    samples = [sample(str(i)) for i in range(400)]
    read = [len(read_first(s, ReadConfig(0.25), tokenizer, 0).turns) == 4 for s in samples]
    assert sum(read) == pytest.approx(100, abs=30)
    assert read == [len(read_first(s, ReadConfig(0.25), tokenizer, 0).turns) == 4 for s in samples]
    assert read != [len(read_first(s, ReadConfig(0.25), tokenizer, 1).turns) == 4 for s in samples]


def test_what_cant_be_read_stays_as_it_is(tokenizer):
    for kept in (sample(reading=""), sample(media=(PICTURE, PICTURE)), sample(media=())):
        assert read_first(kept, ReadConfig(1.0), tokenizer, 0) is kept


def test_a_long_text_is_cut_between_words(tokenizer):
    assert shorten("one two three four", 8, tokenizer) == "one two"  # a byte a token
    assert shorten("one two", 99, tokenizer) == "one two"
    assert shorten("unbreakable", 3, tokenizer) == ""


def test_the_index_of_a_source_that_reads_is_another_one(root, processor):  # noqa: F811
    record = {"id": "1", "image": "a.png", "reading": "Lot 7", "conversations": said("<image>\nWhich lot?", "7")}
    write(root / "x.json", [record])
    plain = source(root, "x.json")
    reads = ReadingSource(plain, ReadConfig(1.0), processor.tokenizer, 0)
    index = build_index(reads, "mine", processor, root / "cache")
    features = encode(reads.sample(0), processor)
    assert index.columns["tokens"][0] == len(features) > len(encode(plain.sample(0), processor))
    learned = features.ids[features.labels != IGNORE]
    assert processor.tokenizer.decode(learned.tolist()) == "Lot 7<|im_end|>7<|im_end|>"
    other = ReadingSource(plain, ReadConfig(0.5), processor.tokenizer, 0)
    folders = {index_folder(s, "mine", processor, root) for s in (plain, reads, other)}
    assert len(folders) == 3


def test_what_is_drawn_is_read_in_words_and_lines():
    def line(text: str, y: float) -> list[Glyph]:
        return [Glyph(c, 10 * i, y, 10 * i + 8, y + 12) for i, c in enumerate(text) if c != " "]

    assert text_of(line("ab cd", 0) + line("e f", 20)) == "ab cd\ne f"
    assert text_of([]) == ""
