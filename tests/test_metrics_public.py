"""Metrics of the public benchmarks: values that lmms-eval 0.7.3's functions printed, and properties of our own."""

from __future__ import annotations

import random
from functools import cache

import pytest

from pumice.eval.metrics import trees, vqa, yesno
from pumice.eval.metrics.strings import levenshtein
from pumice.eval.metrics.yesno import MmeRow
from pumice.types import PumiceError


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("ab", ["ac"], 0.5),
        ("abcd", ["abxy"], 0.5),
        ("abcd", ["axyz"], 0.0),
        ("", [""], 1.0),
        ("", ["abc"], 0.0),
        ("$12.50", ["12.50"], 0.8333),
        ("10", ["10%"], 0.6667),
        ("straße", ["strasse"], 0.7143),
        ("x", ["abcdef", "X"], 1.0),
        ("New  York ", ["new york"], 1.0),
        ("New  Yorc ", ["new york"], 0.9),  # the blanks count in the length only
    ],
)
def test_anls(prediction, references, score):
    assert vqa.anls(prediction, references) == pytest.approx(score, abs=5e-5)


@pytest.mark.parametrize(
    ("text", "textvqa", "vqav2"),
    [
        ("The Cat.", "cat", "cat"),
        ("two", "2", "2"),
        ("None", "0", "0"),
        ("John's", "john 's", "john's"),
        ("a/b", "b", "b"),
        ("left,right", "leftright", "left right"),
        ("10:30", "10:30", "10:30"),
        ("$5.00", "$5.00", "$5.00"),
        ("50%", "50%", "50%"),
        ("3.5", "3.5", "3.5"),
        ("e.g. x", "eg x", "eg x"),
        ("dont", "don't", "don't"),
        ("couldnt've", "couldn't've", "couldn't've"),
        ("somebody'd", "somebodyd", "somebodyd"),
        ("its 1,000 (one thousand)", "its 1000 1 thousand", "its 1000 1 thousand"),
        ("5. " + "." * 40, "5 .........", "5 ........."),  # 32 points are dropped, no more
    ],
)
def test_vqa_normalisers(text, textvqa, vqav2):
    assert vqa.normalise_textvqa(text) == textvqa
    assert vqa.normalise_vqav2(text) == vqav2


def test_vqa_accuracy():
    for accuracy in (vqa.vqa_accuracy, vqa.vqav2_accuracy):
        for agree, score in enumerate((0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1)):
            humans = ["two"] * agree + [f"other {i}" for i in range(10 - agree)]
            assert accuracy("2", humans) == pytest.approx(score)
    # Both sides are normalised though the humans are unanimous; the VQA server would give 0.
    assert vqa.vqa_accuracy("cat", ["The cat"] * 10) == 1
    assert vqa.vqa_accuracy("leftright", ["left,right"] * 10) == 1
    assert vqa.vqav2_accuracy("leftright", ["left,right"] * 10) == 0


def test_no_references_is_an_error():
    for score in (vqa.anls, vqa.vqa_accuracy, vqa.vqav2_accuracy):
        with pytest.raises(ValueError, match="no reference"):
            score("x", [])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("nope", "no"), ("not sure", "no"), ("Yeah", "other"), ("I think yes", "other"), ("Yes.", "yes"), ("N", "no"),
        ("y.", "yes"), ("", "other"), ("x", "other"), (" no, there is none", "no"), ("The answer", "other"),
    ],
)  # fmt: skip
def test_mme_answer(text, answer):
    assert yesno.mme_answer(text) == answer


def test_mme_score():
    def rows(category, *pairs):
        return [
            MmeRow(category, f"{i}.png", "yes" if right else "maybe", "Yes")
            for i, pair in enumerate(pairs)
            for right in pair
        ]

    found = yesno.mme_score(rows("count", (1, 1), (1, 0)))
    assert (found.perception, found.cognition, found.unparsed) == (125, 0, 1)
    found = yesno.mme_score(rows("OCR", (1, 1)) + rows("count", (0, 1)) + rows("code_reasoning", (0, 0), (1, 1)))
    assert found.categories == {"OCR": 200, "count": 50, "code_reasoning": 100}
    assert (found.perception, found.cognition, found.unparsed) == (250, 100, 3)
    everything = [row for name in yesno.PERCEPTION + yesno.COGNITION for row in rows(name, (1, 1))]
    assert yesno.mme_score(everything) == yesno.MmeScore(
        2000, 800, dict.fromkeys(yesno.PERCEPTION + yesno.COGNITION, 200), 0
    )
    with pytest.raises(PumiceError, match=r"count, 0\.png: 3 answers; expected the two"):
        yesno.mme_score(rows("count", (1, 1, 1)))
    with pytest.raises(PumiceError, match="no category 'ocr'"):
        yesno.mme_score(rows("ocr", (1, 1)))
    with pytest.raises(PumiceError, match="expected yes or no"):
        yesno.mme_score([MmeRow("count", "a", "yes", "maybe")])


CLEAN = [("yes", "yes"), ("yes", "no"), ("no", "no")]
WORDY = [("Yes.", "yes"), ("Yes, there is", "yes"), ("No.", "no")]


def test_pope():
    # On clean answers equal to lmms-eval's accuracy, precision, recall and F1.
    found = yesno.pope_official(CLEAN)
    assert (found.accuracy, found.precision, found.recall) == (pytest.approx(2 / 3), 0.5, 1)
    assert (found.f1, found.yes_ratio, found.unparsed, found.n) == (pytest.approx(2 / 3), pytest.approx(2 / 3), 0, 3)
    # lmms-eval prints .3333, .5, 1.0, .6667 and a yes ratio of .5 here: three right answers in words are wrong to it.
    found = yesno.pope_official(CLEAN + WORDY)
    assert found.accuracy == pytest.approx(5 / 6)
    assert (found.precision, found.recall, found.f1) == (0.75, 1, pytest.approx(6 / 7))
    assert found.yes_ratio == pytest.approx(4 / 6)
    assert yesno.pope_official([("maybe", "no"), ("no", "no")]).unparsed == 1
    assert yesno.pope_official([("no", "yes"), ("no", "no")]).f1 == 0
    with pytest.raises(PumiceError, match="at least one"):
        yesno.pope_official([])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("There is no dog. Yes", "no"), ("It is not", "no"), ("No, it isn't", "no"), ("Yes. No", "yes"),
        ("NO", "yes"), ("none", "yes"), ("", "yes"),  # all that isn't no is yes
    ],
)  # fmt: skip
def test_pope_answer(text, answer):
    assert yesno.pope_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"), ("b", None), ("", None), (" . ", None), ("(B)", "B"), ("B) dog", "B"), ("B. a dog", "B"),
        ("The correct answer is (B).", "B"), ("A or B", "A"), ("I think it is C", "C"),
        ("between (A) and (D) it is", "D"),
        ("A dog is shown here", "A"), ("a dog", None), ("Dog", "D"), ("答案是C因为", "C"), ("Option: C: a cat", "C"),
        ("the answer is B. All others", "A"),  # a letter inside a word
    ],
)  # fmt: skip
def test_choice_letter(text, letter):
    assert yesno.choice_letter(text) == letter


def test_choice_score_counts_what_it_cannot_read():
    found = yesno.choice_score([("A", "A"), ("(C)", "B"), ("a cat", "A"), ("", "D")], "ABCD")
    assert (found.accuracy, found.unparsed, found.n) == (0.25, 2, 4)
    assert yesno.choice_letter("E", "ABCD") is None
    with pytest.raises(PumiceError, match="true letter 'E'; expected letters among A, B, C, D"):
        yesno.choice_score([("A", "E")], "ABCD")
    with pytest.raises(PumiceError, match="no answers"):
        yesno.choice_score([])


TRUTH = {
    "menu": [{"name": "cake", "count": "2"}, {"name": "juice", "count": "1"}],
    "total": {"total_price": "12.00"},
}


@pytest.mark.parametrize(
    ("prediction", "accuracy", "f1"),
    [
        # Printed by Donut's JSONParseEvaluator.
        (TRUTH, 1, 1),
        ({}, 0, 0),
        ({"total": {"total_price": "12.00"}, "menu": [{"count": "2", "name": "cake"}, TRUTH["menu"][1]]}, 1, 1),
        (TRUTH | {"menu": TRUTH["menu"][::-1]}, 0.6154, 1),
        (TRUTH | {"total": {"total_price": "12.50"}}, 0.9615, 0.8),
        (TRUTH | {"menu": [{"name": "cake", "count": 2}, {"name": "juice", "count": 1}]}, 1, 1),
        ({"menu": TRUTH["menu"][:1]}, 0.3462, 0.5714),
        (TRUTH | {"extra": "x" * 50}, 0, 0.9091),
        (TRUTH | {"zero": 0, "nothing": None, "blank": []}, 1, 1),
        ("cake 2 juice 1 12.00", 0, 0),
    ],
)
def test_ted_and_field_f1(prediction, accuracy, f1):
    assert trees.ted_accuracy(prediction, TRUTH) == pytest.approx(accuracy, abs=5e-5)
    assert trees.field_f1([prediction], [TRUTH]) == pytest.approx(f1, abs=5e-5)


def test_ted_of_nothing():
    assert trees.ted_accuracy({}, {}) == trees.ted_accuracy(TRUTH, {}) == 0
    with pytest.raises(ValueError, match="no fields"):
        trees.field_f1([{}], [{}])
    # Fields are counted over all documents, not averaged.
    assert trees.field_f1([TRUTH, {"a": "1"}], [TRUTH, {"a": "2"}]) == pytest.approx(5 / 6)


def grow(rng, depth):
    """A random tree of keys and leaves."""
    if depth == 0 or rng.random() < 0.4:
        return trees.Node("".join(rng.choices("ab", k=rng.randint(0, 2))), leaf=True)
    return trees.Node(rng.choice("xy"), tuple(grow(rng, depth - 1) for _ in range(rng.randint(0, 3))))


def plain_distance(a, b):
    """The recursion over forests that defines the distance, with none of Zhang and Shasha's order."""

    def cost(node):
        return len(node.label) if node.leaf else 1

    def change(x, y):
        if x.leaf and y.leaf:
            return levenshtein(x.label, y.label)
        return 1 + len((x if x.leaf else y).label) if x.leaf or y.leaf else int(x.label != y.label)

    @cache
    def forests(left, right):
        if not left and not right:
            return 0
        choices = []
        if left:
            choices.append(forests(left[:-1] + left[-1].children, right) + cost(left[-1]))
        if right:
            choices.append(forests(left, right[:-1] + right[-1].children) + cost(right[-1]))
        if left and right:
            below = forests(left[-1].children, right[-1].children)
            choices.append(forests(left[:-1], right[:-1]) + below + change(left[-1], right[-1]))
        return min(choices)

    return forests((a,), (b,))


def test_tree_distance_is_that_of_the_plain_recursion():
    rng = random.Random(0)
    for _ in range(150):
        a, b = grow(rng, 3), grow(rng, 3)
        assert trees.tree_distance(a, b) == plain_distance(a, b) == trees.tree_distance(b, a)
        assert trees.tree_distance(a, a) == 0


def test_tree_distance_against_zss():
    zss = pytest.importorskip("zss")
    rng = random.Random(1)

    def cost(node):
        return len(node.label) if node.leaf else 1

    for _ in range(50):
        a, b = grow(rng, 4), grow(rng, 4)
        wanted = zss.distance(a, b, lambda node: list(node.children), cost, cost, trees._change)
        assert trees.tree_distance(a, b) == wanted


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ('{"a": 1}', {"a": 1}),
        (' [{"a": "b"}] ', [{"a": "b"}]),
        ('Here it is:\n```json\n{"a": {"b": "c"}}\n```', {"a": {"b": "c"}}),
        ('{"a": 1} or {"longer": [1, 2]}', {"longer": [1, 2]}),
        ('{"a": {"b": 1}', {"b": 1}),  # cut off: the part that is whole
        ("12", None),
        ('"text"', None),
        ("{'a': 1}", None),
        ("", None),
        ("[" * 2000 + "]" * 2000, None),
        ('{"a":' * 90 + "1" + "}" * 90, None),
    ],
)
def test_read_json(text, data):
    assert trees.read_json(text) == data
    assert trees.field_f1([trees.read_json(text)], [TRUTH]) == 0
