"""Random schedules of arrivals, cancellations, evictions and failures: never a wrong answer, never a token leaked.

The model is replaced by one whose next token is a hash of all that came before, read from where the engine keeps it:
a token too many, too few, misplaced, or of another picture gives another answer.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pumice.engine.attention_plan import SHORT
from pumice.engine.engine import Engine
from pumice.engine.memory import token_bytes
from pumice.engine.request import Sampling
from pumice.engine.settings import Full, Settings
from pumice.types import IGNORE, IMAGE, Features, Layout, PumiceError

VOCABULARY, PRIME = 4, 1_000_003
WEIGHTS = [pow(31, n, PRIME) for n in range(4096)]


def hashed(codes: list[int]) -> int:
    """The token after so many."""
    return sum((code + 7) * WEIGHTS[len(codes) - n] for n, code in enumerate(codes)) % PRIME % VOCABULARY


class Model:
    """What the engine needs of an AssistantModel: every token's embedding is one number, its code."""

    def __init__(self) -> None:
        self.newline, self.device = torch.zeros(1), torch.device("cpu")
        config = SimpleNamespace(
            num_key_value_heads=1, num_hidden_layers=1, head_dim=1, max_position_embeddings=512, hidden_size=1
        )
        self.lm = SimpleNamespace(config=config, get_input_embeddings=lambda: lambda ids: ids.float()[:, None])
        self.seen = 0

    def tower(self, tiles: Tensor) -> Tensor:
        self.seen += len(tiles)
        return tiles[:, :1, 0]

    def visual(self, features: Tensor, layouts: list[Layout]) -> Tensor:
        (placed,) = layouts
        assert len(features) == placed.views
        return picture_codes(features[:, 0, 0].tolist(), placed)[:, None]


def picture_codes(values: list[float], placed: Layout) -> Tensor:
    return torch.tensor(
        [1000 + 97 * n + 13 * placed.map[1] + sum(i * v for i, v in enumerate(values, 3)) for n in range(placed.tokens)]
    ).float()


class HashDecoder:
    """Answers with hashes, and fails when told to."""

    def __init__(self) -> None:
        self.fail: BaseException | None = None

    def forward(self, embedded: Tensor, positions: Tensor, spans: Any) -> Tensor:
        written: set[int] = set()
        hidden = torch.zeros(len(embedded), 1)
        for span in spans:
            *before, own = span.path
            assert id(own) not in written, "two spans of a pass write to one segment"
            written.add(id(own))
            end = own.length + span.last - span.first
            assert end <= own.capacity
            own.keys[0][0, own.length : end, 0] = embedded[span.first : span.last, 0]
            own.values[0][0, own.length : end, 0] = positions[span.first : span.last].float()
            parts = [(one, one.length) for one in before] + [(own, end)]
            codes = torch.cat([one.keys[0][0, :length, 0] for one, length in parts]).int().tolist()
            places = torch.cat([one.values[0][0, :length, 0] for one, length in parts])
            assert torch.equal(places, torch.arange(len(places)).float())
            for row in range(max(span.first, span.last - SHORT), span.last):  # no others are asked for
                hidden[row] = hashed(codes[: len(codes) - (span.last - 1 - row)])
        if self.fail is not None:
            raise self.fail
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[:, 0].long(), VOCABULARY).float()


class Case:
    """A prompt of texts and pictures that others share the beginning of, and its answer.

    With ``before`` it goes on from another's prompt and some of its answer, as a conversation does.
    """

    def __init__(self, random: random.Random, before: Case | None = None) -> None:
        said = before.answer()[: random.randint(0, 8)] if before else []
        self.codes = [*before.codes, *said] if before else []
        ids = [*before.prompt.ids.tolist(), *said] if before else []
        tiles, layouts = [before.prompt.tiles if before else torch.zeros(0, 3, 1, 1)], []
        layouts += before.prompt.layouts if before else ()
        for _ in range(random.randint(1, 2 if before else 3)):
            if random.random() < 0.5:
                placed = layout(random.choice([1, 3, 6]), random.choice([1, 2]), random.choice([1, 2]))
                values = [float(random.randint(1, 2)) for _ in range(placed.views)]
                tiles.append(torch.tensor(values)[:, None, None, None].expand(-1, 3, 1, 1))
                layouts.append(placed)
                ids += [IMAGE] * placed.tokens
                self.codes += picture_codes(values, placed).int().tolist()
            text = [random.randrange(3) for _ in range(random.choice([0, 1, 2, 9]))]
            ids, self.codes = ids + text, self.codes + text
        last = random.randrange(3)
        ids, self.codes = [*ids, last], [*self.codes, last]
        self.prompt = Features(torch.tensor(ids), torch.full((len(ids),), IGNORE), torch.cat(tiles), tuple(layouts))
        self.max_tokens = random.choice([1, 2, 3, 8])
        self.space = before.space if before else random.choice(["", "", "", "other"])

    def answer(self) -> list[int]:
        codes = list(self.codes)
        for _ in range(self.max_tokens):
            codes.append(hashed(codes))
        return codes[len(self.codes) :]


def layout(tokens: int, map_width: int, views: int) -> Layout:
    return Layout(
        (10, 10), 1, 1, views, 1, (1, 1), (0, 0), False, (0, 1, 0, 1), (tokens, map_width), False, tokens
    )  # fmt: skip


def check(engine: Engine, empty: bool = False) -> None:
    """All that is held is counted, once, and is really there; nothing is in use that nobody uses."""
    scheduler = engine._scheduler
    nodes, running = list(scheduler.tree.nodes()), scheduler.running
    segments = [node.segment for node in nodes] + [job.own for job in running]
    memory = scheduler.memory
    assert memory.held == sum(segment.capacity for segment in segments) <= memory.budget
    storages = {s.keys[0].untyped_storage().data_ptr(): s.keys[0].untyped_storage().nbytes() for s in segments}
    assert sum(storages.values()) == 4 * memory.held
    users = Counter(id(node) for job in running for node in job.node.path())
    for node in nodes:
        assert node.segment.capacity == len(node.keys) > 0
        assert node.users == users[id(node)]
        assert node.users or node.whole
        assert all(key == child.keys[0] for key, child in node.children.items())
        assert node.whole or not any(child.segment.length for child in node.children.values())
    pictures = scheduler.pictures
    held = [p for p in pictures._pictures.values() if p.tokens is not None]
    assert pictures.held == sum(p.tokens.nbytes for p in held)
    if not engine._running and not engine._waiting:
        assert all(p.users == 0 and p.tokens is not None and p.tiles is None for p in pictures._pictures.values())
    if empty:
        assert not running
        assert not nodes
        assert (memory.held, pictures.held, len(pictures), len(scheduler.tree.roots)) == (0, 0, 0, 0)
        assert not memory._sharing


def run(seed: int, processor: Any, tally: Counter[str]) -> None:
    """One schedule on an engine of its own."""
    chance = random.Random(seed)
    model, decoder = Model(), HashDecoder()
    budget = chance.choice([40, 60, 200])
    settings = Settings(
        memory_mib=budget * token_bytes(model, torch.float32) / 2**20, pictures_mib=chance.choice([0, 30 / 2**20, 1]),
        batch=chance.choice([1, 2, 4]), chunk=chance.choice([1, 3, 8, 64]), queue=chance.choice([1, 4]),
        views=chance.choice([1, 2, 8]), lookup=seed % 3 * 3,
    )  # fmt: skip
    engine = Engine(model, processor, settings, decoder, start=False)
    cases = [Case(chance) for _ in range(2)]
    cases.append(Case(chance, chance.choice(cases)))
    asked: list[tuple[Case, Any, bool]] = []
    for _ in range(chance.randint(4, 10)):
        event = chance.random()
        if event < 0.5:
            case = chance.choice(cases)
            try:
                ticket = engine.submit(case.prompt, Sampling(case.max_tokens), space=case.space)
                asked.append((case, ticket, False))
            except PumiceError as error:
                tally["full" if isinstance(error, Full) else "too long"] += 1
        elif event < 0.62 and asked:
            place = chance.randrange(len(asked))
            asked[place] = (*asked[place][:2], True)
            asked[place][1].cancel()
        elif event < 0.66:
            decoder.fail = chance.choice([RuntimeError("told to fail"), KeyboardInterrupt("told to fail")])
            with suppress(KeyboardInterrupt):
                engine.step()
            decoder.fail = None
        elif event < 0.7:
            engine.forget()
        for _ in range(chance.choice([0, 1, 2, 5])):
            engine.step()
        if chance.random() < 0.3:
            check(engine)
    while engine.step():
        pass
    check(engine)
    for case, ticket, cancelled in asked:
        verdict(case, ticket, cancelled, tally)
    tally["tiles"] += model.seen
    tally["cached"] += engine.stats().cached_tokens
    tally["right"] += engine.stats().right_tokens
    tally["wrong"] += engine.stats().guessed_tokens - engine.stats().right_tokens
    engine.forget()
    check(engine, empty=True)


def verdict(case: Case, ticket: Any, cancelled: bool, tally: Counter[str]) -> None:
    assert ticket.over
    if isinstance(ticket._end, PumiceError):
        assert "told to fail" in str(ticket._end)
        tally["failed"] += 1
        return
    outcome = ticket.result()
    wanted = case.answer()
    if outcome.finish == "cancelled":
        assert cancelled
        assert list(outcome.ids) == wanted[: len(outcome.ids)]
        tally["cancelled"] += 1
        return
    assert list(outcome.ids) == wanted
    assert outcome.finish == "length"
    tally["answered"] += 1


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 10))])
def test_a_thousand_schedules_give_right_answers_and_leak_nothing(part, processor, caplog):
    caplog.set_level("CRITICAL")
    tally: Counter[str] = Counter()
    for seed in range(1000 * part, 1000 * part + 1000):
        try:
            run(seed, processor, tally)
        except BaseException:
            print(f"seed {seed}")
            raise
    assert tally["answered"] > 1500
    others = ("cancelled", "failed", "full", "too long", "cached", "tiles", "right", "wrong")
    assert min(tally[what] for what in others) > 5
