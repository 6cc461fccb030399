"""Text as it comes: pieces make the whole decoded text, nothing is shown that changes later, stop texts cut."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any, cast

import pytest
from gguf_models import byte_level, sentencepiece
from hf_models import make_tokenizer
from test_llama_tokenizer import KINDS, made

from pumice.engine.counting import Count
from pumice.engine.detokenise import Detokeniser, token_text
from pumice.engine.engine import Engine
from pumice.engine.request import Sampling
from pumice.engine.sampler import Choice
from pumice.engine.ticket import Request, Ticket

SMOLLM = Path(os.environ.get("PUMICE_CACHE", Path.home() / ".cache" / "pumice")) / "smollm2-135m-instruct"
TEXTS = [
    "The total is 11.20, paid by card.\n\nThank you!",
    "  two blanks before, one after ",
    "発票 总额 ￥128.00 元 含税 — naïve café",
    "😀👩‍👩‍👧 flags 🇩🇪 and ﷽ \U0001f9d1\U0001f3fd",
    "tabs\tand\r\nlines\n\n\n",
    "a\ufffdb, \ufffd",
]
NAMES = ["bytes", "merges", "sentencepiece", "smollm", *KINDS]


def tokenizer_of(name: str) -> Any:
    if name == "smollm":
        from transformers import AutoTokenizer

        if not SMOLLM.is_dir():
            pytest.skip("SmolLM2's tokenizer isn't on this machine")
        return AutoTokenizer.from_pretrained(SMOLLM)
    others = {"bytes": make_tokenizer, "merges": byte_level, "sentencepiece": sentencepiece}
    return others[name]() if name in others else made(name)


@pytest.fixture(scope="module", params=NAMES)
def tokenizer(request) -> Any:
    return tokenizer_of(request.param)


def pieces(detokeniser: Detokeniser, ids: list[int]) -> list[str]:
    """What each token gives, and at last what was held back; ends as an engine would."""
    shown = []
    for token in ids:
        shown.append(detokeniser.push(token))
        if detokeniser.stopped:
            break
    return [*shown, detokeniser.finish()]


def whole(tokenizer: Any, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def cut(text: str, stops: tuple[str, ...]) -> str:
    """Before the stop text that is whole first."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def random_ids(tokenizer: Any, seed: int, count: int) -> list[int]:
    """Ids of any kind, or of texts, or single bytes: most make no text that anybody has written."""
    rng = random.Random(seed)
    ids: list[int] = []
    while len(ids) < count:
        kind = rng.randrange(4)
        if kind == 0:
            ids += rng.choices(range(len(tokenizer)), k=rng.randint(1, 8))
        elif kind == 1:
            ids += tokenizer(rng.choice(TEXTS), add_special_tokens=False).input_ids[: rng.randint(1, 30)]
        elif kind == 2:
            ids += rng.choices(range(300), k=rng.randint(1, 8))  # special tokens and bytes are among the first
        else:
            ids += [rng.randrange(len(tokenizer))] * rng.randint(1, 12)
    return ids[:count]


@pytest.mark.parametrize("seed", range(12))
def test_pieces_of_random_tokens_make_the_decoded_text(tokenizer, seed):
    for length in (1, 2, 3, 7, 40, 300):
        ids = random_ids(tokenizer, 100 * seed + length, length)
        assert "".join(pieces(Detokeniser(tokenizer), ids)) == whole(tokenizer, ids)
        stripped = "".join(pieces(Detokeniser(tokenizer, strip=True), ids))
        assert stripped == whole(tokenizer, ids).strip()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_whole_character_by_character(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    shown = pieces(Detokeniser(tokenizer), ids)
    assert "".join(shown) == whole(tokenizer, ids)
    assert "\ufffd" not in "".join(shown).replace("a\ufffdb, \ufffd", "")
    if "<0x41>" not in tokenizer.get_vocab() and "\ufffd" not in text:
        # Without byte tokens nothing but unfinished characters is held back.
        for count in range(1, len(ids)):
            settled = whole(tokenizer, ids[:count])
            assert "".join(shown[:count]) == (settled.rstrip("\ufffd") if settled.endswith("\ufffd") else settled)


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_cut_at_the_stop_text_that_is_whole_first(tokenizer, seed):
    rng = random.Random(seed)
    ids = random_ids(tokenizer, seed, 80)
    text = whole(tokenizer, ids)
    for _ in range(20):
        places = [rng.randrange(max(1, len(text))) for _ in range(rng.randint(1, 4))]
        stops = tuple(filter(None, (text[at : at + rng.randint(1, 12)] for at in places)))
        stops += ("never in it \x01\x02",)
        for strip in (False, True):
            expected = cut(text, stops)
            detokeniser = Detokeniser(tokenizer, stops, strip=strip)
            assert "".join(pieces(detokeniser, ids)) == (expected.strip() if strip else expected)
            assert detokeniser.stopped


def test_no_part_of_a_stop_text_is_shown(tokenizer):
    ids = tokenizer("one END", add_special_tokens=False).input_ids
    for stop in ("END", "ND", "E"):
        shown = pieces(Detokeniser(tokenizer, (stop,)), ids)
        assert "".join(shown) == cut(whole(tokenizer, ids), (stop,))
    # What only looked like one is shown after all.
    assert "".join(pieces(Detokeniser(tokenizer, ("ENDED",)), ids)) == whole(tokenizer, ids)


def test_stop_texts_overlap(tokenizer):
    ids = tokenizer("xaabaabaac", add_special_tokens=False).input_ids
    text = whole(tokenizer, ids)
    for stops in (("aabaac",), ("abaabaac", "baac"), ("abc", "aabaab", "ab"), ("aa", "aab")):
        assert "".join(pieces(Detokeniser(tokenizer, stops), ids)) == cut(text, stops)


def test_tokens_that_end_an_answer_have_no_text_and_stop(tokenizer):
    ids = tokenizer("done 😀", add_special_tokens=False).input_ids
    end = next(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    detokeniser = Detokeniser(tokenizer, stop_ids=(end,))
    shown = [detokeniser.push(token) for token in [*ids, end, *ids]]
    assert detokeniser.stopped
    assert "".join(shown) + detokeniser.finish() == whole(tokenizer, ids)
    assert detokeniser.finish() == ""


def test_a_stop_text_in_the_last_tokens_that_fit_is_a_stop(tokenizer):
    """Of byte tokens the end of the answer shows first that they are a stop text."""
    ids = tokenizer("ab\n", add_special_tokens=False).input_ids
    for stop, finish in ((("\n",), "stop"), (("\n\n",), "length")):
        sampling = Sampling(len(ids), stop=stop)
        ticket = Ticket(cast(Engine, None), lambda _: None)
        request = Request(ticket, None, sampling, "", Count(1, 0, 0), Detokeniser(tokenizer, stop), None, ())
        ends = [request.take(Choice(token, 0.0), tokenizer) for token in ids]
        assert ends[:-1] == [None] * (len(ids) - 1)
        assert ends[-1] is not None
        outcome = request.end(ends[-1])
        assert (outcome.text, outcome.finish) == (cut(whole(tokenizer, ids), stop), finish)


def test_after_a_stop_text_nothing_comes(tokenizer):
    detokeniser = Detokeniser(tokenizer, (".",))
    ids = tokenizer("a. b", add_special_tokens=False).input_ids
    text = "".join([detokeniser.push(token) for token in [*ids, *ids]]) + detokeniser.finish()
    assert text == cut(whole(tokenizer, ids), (".",))


@pytest.mark.parametrize("name", ["smollm", "sentencepiece"])
def test_work_per_token_does_not_grow(name):
    """Also where no character is ever whole, and where a stop text seems to begin at every token."""
    tokenizer = tokenizer_of(name)
    half = tokenizer("\U0001f600", add_special_tokens=False).input_ids[0]
    a = tokenizer("aaaa", add_special_tokens=False).input_ids[-1]
    for token in (half, a):
        seconds = []
        for count in (2000, 16_000):
            detokeniser = Detokeniser(tokenizer, ("a" * 200 + "b",))
            began = time.process_time()
            for _ in range(count):
                detokeniser.push(token)
            detokeniser.finish()
            seconds.append(time.process_time() - began)
        assert seconds[1] < 20 * seconds[0] + 0.05  # 8 times the tokens; squared it would be 64


def test_text_of_a_token(tokenizer):
    ids = tokenizer("The total is 11.20", add_special_tokens=False).input_ids
    assert "".join(token_text(tokenizer, token) for token in ids).strip() == "The total is 11.20"
    special = next(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    assert token_text(tokenizer, special) == tokenizer.added_tokens_decoder[special].content
