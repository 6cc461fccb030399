"""The page of a run: its curves are the log's figures, and nothing in it comes from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pumice.config import Stage
from pumice.train.page import HEIGHT, panel, write_page
from pumice.train.view import Printer


def row(step: int, loss: float, **more) -> dict:
    return {"stage": "s<1>", "step": step, "answer_loss": loss, "norm": 1.0, "step_s": 0.1, "wait": 0.0, **more}


def write(run: Path, rows: list[dict]) -> None:
    lines = [json.dumps({"pictures_s": 1.0, "tokens_s": 2.0, **r}) for r in rows]
    (run / "log.jsonl").write_text("\n".join(lines) + "\n")


def test_curves_are_the_figures_of_the_log():
    rows = [row(10, 4.0), row(20, 2.0, heldout_answer_loss=3.0), row(30, 1.0)]
    drawn = panel("loss", rows, ".*_loss")
    lines = [
        [tuple(map(float, p.split(","))) for p in points.split()] for points in re.findall(r'points="([^"]+)"', drawn)
    ]
    trained, held = lines
    assert len(trained) == 3
    assert len(held) == 1
    assert (trained[0][1], trained[2][1]) == (8.0, HEIGHT - 24.0)  # the highest at the top, the lowest on the axis
    assert trained[1][0] == held[0][0] == (trained[0][0] + trained[2][0]) / 2
    assert held[0][1] < trained[1][1]  # a higher loss is drawn higher
    assert drawn.count("<circle") == 1
    assert "answer_loss 1<" in drawn
    assert panel("accuracy", rows, ".*_accuracy") == ""


def test_the_page_is_whole_safe_and_alone(tmp_path):
    write(tmp_path, [row(10, 4.0), row(20, 3.0), row(10, 9.0)])  # a resumed run: the later row of a step counts
    (tmp_path / "recipe.toml").write_text('name = "<script>"')
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"stage": "s<1>", "st')  # a killed process
    page = write_page(tmp_path).read_text()
    assert "<h2>s&lt;1&gt;</h2>" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=|https?:", page)
    assert ">9<" in page.replace("9.0", "9")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_run_without_a_log_has_a_page(tmp_path):
    assert "Nothing logged yet" in write_page(tmp_path).read_text()


def test_the_printer_writes_the_page_at_the_end(tmp_path, capsys):
    write(tmp_path, [row(1, 4.0)])
    printer = Printer(tmp_path)
    stage = Stage("s<1>", "answer", {"lm": 1.0}, {"lines": 1.0}, steps=2, batch=1)
    for step in (1, 2):
        write(tmp_path, [row(i, 4.0 - i) for i in range(1, step + 1)])
        printer(stage, {**row(step, 4.0 - step), "pictures_s": 1.0, "tokens_s": 2.0}, 2)
    assert "answer_loss 2<" in (tmp_path / "index.html").read_text()
    assert capsys.readouterr().out.splitlines()[1].startswith("s<1> 2/2  answer_loss 2.0")


def test_on_a_terminal_a_bar_moves_under_the_lines(capsys):
    stage = Stage("s", "answer", {"lm": 1.0}, {"lines": 1.0}, steps=4, batch=1)
    printer = Printer(live=True)
    for done in (1, 2):
        printer.step(stage, done, 4)
    assert printer.bar is not None
    (task,) = printer.bar.tasks
    assert (task.description, task.completed, task.total) == ("s", 2, 4)
    printer(
        stage, {"step": 2, "answer_loss": 1.5, "step_s": 90_000.0, "wait": 0.25, "pictures_s": 1.0, "tokens_s": 2.0}, 4
    )
    printer.close()
    assert (
        "s 2/4  answer_loss 1.5  1.0 pictures/s  2.0 tokens/s  data 25%  left 2 d 02:00:00" in capsys.readouterr().out
    )
    quiet = Printer(live=False)
    quiet.step(stage, 1, 4)
    assert quiet.bar is None
