"""Personal data in texts: what is found, what isn't, and what stands in its place."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

from pumice.data.care.clean import Cleaned
from pumice.data.care.opening import open_path
from pumice.data.care.personal import STAND_INS, Scrubber
from pumice.data.importing.writing import write_entries
from pumice.types import PumiceError


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to jane.doe+news@mail.example.co.uk today", ["email"]),
        ("a@b is no address, and @handle neither", []),
        ("pay into DE89 3704 0044 0532 0130 00 by Friday", ["iban"]),
        ("pay into DE88 3704 0044 0532 0130 00 by Friday", []),
        ("IBAN GB82WEST12345698765432.", ["iban"]),
        ("card 4539 1488 0343 6467, thanks", ["card"]),
        ("card 4539 1488 0343 6468, thanks", []),
        ("4539-1488-0343-6467", ["card"]),
        ("0000000000000000", []),
        ("call +49 30 901820 or mail x@y.org", ["phone", "email"]),
        ("call 030 901820", []),
        ("Total 1,234.50, 12 items, 2024-03-01 12:30, order 20240301123045", []),
        ("barcode 4006381333931", []),
    ],
)
def test_what_counts_as_personal(text, kinds):
    assert [one.kind for one in Scrubber().find(text)] == kinds


def test_national_numbers_are_those_of_the_region():
    assert [one.kind for one in Scrubber("DE").find("call 030 901820")] == ["phone"]
    with pytest.raises(PumiceError, match="no region"):
        Scrubber("XX")


def test_stand_ins_are_of_the_same_kind_and_stay():
    text = "jane@mail.org, +49 30 901820, DE89 3704 0044 0532 0130 00, 4539 1488 0343 6467"
    scrubbed, counts = Scrubber().scrub(text)
    assert scrubbed == ", ".join(STAND_INS[kind] for kind in ("email", "phone", "iban", "card"))
    assert counts == dict.fromkeys(STAND_INS, 1)
    assert [one.kind for one in Scrubber().find(scrubbed)] == ["email", "phone", "iban", "card"]
    assert Scrubber().scrub(scrubbed) == (scrubbed, {})


def test_a_long_text_takes_no_time_to_speak_of():
    import time

    begin = time.monotonic()
    Scrubber().find("AB12 " + "A1B2 " * 20_000 + "1 " * 20_000 + "a." * 20_000 + "@" + "b." * 20_000)
    assert time.monotonic() - begin < 20


def test_a_copy_counts_what_it_replaced(tmp_path):
    turns = [{"from": "human", "value": "Who is it?"}, {"from": "gpt", "value": "jane@mail.org and bob@mail.org"}]
    plain = [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Nobody."}]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps({"id": str(i), "conversations": one}) for i, one in enumerate((turns, plain))))
    written = write_entries(Cleaned(open_path(path, "t"), {}, Scrubber()), tmp_path / "out", "t")
    assert written.counts == {"replaced: email": 2, "samples with personal data": 1, "written": 2}
    first = json.loads(written.path.read_text().splitlines()[0])
    assert first["conversations"][1]["value"] == "someone@example.com and someone@example.com"
