"""The demo's own code, over an assistant that says one thing; tests/test_readme.py runs it with the pocket model."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

import pumice

DEMO = Path(__file__).parents[1] / "demo"


class Same:
    """Answers everything with brackets, as rich and HTML have them."""

    def ask_many(self, pairs, max_tokens):
        return [pumice.Answer("[b]<b>", 2, 9, 12, 5.0, 3.0, -1.0, "stop") for _ in pairs]


def run(folder: Path) -> None:
    runpy.run_path(str(folder / "run.py"), run_name="__main__")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    shutil.copytree(DEMO, tmp_path / "demo", ignore=shutil.ignore_patterns("out"))
    monkeypatch.syspath_prepend(str(tmp_path / "demo"))
    monkeypatch.setattr(pumice, "load", lambda name: Same())
    return tmp_path / "demo"


def test_every_answer_is_in_the_table_and_on_the_page(folder, capsys):
    run(folder)
    told = capsys.readouterr().out
    assert told.count("[b]<b>") == 24
    page = (folder / "out" / "index.html").read_text(encoding="utf8")
    assert page.count("[b]&lt;b&gt;") == 24
    assert page.count("data:image/png;base64,") == 6 + 2 + 1 + 4  # pictures, two receipts, a page, frames of the video
    assert "<figcaption>receipt, receipt-2</figcaption>" in page


def test_a_page_that_can_not_be_written_costs_no_answer(folder, capsys):
    (folder / "out").write_text("")
    with pytest.raises(SystemExit, match=r"index\.html: can't be written \("):
        run(folder)
    assert capsys.readouterr().out.count("[b]<b>") == 24
