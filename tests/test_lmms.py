"""Pumice inside lmms-eval: whole runs over local files, with batches, several processes, resuming and a judge."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import picture

from pumice import cli
from pumice.assistant import Assistant
from pumice.eval.public import outcomes, runner, user_tasks
from pumice.formats.own import save_own
from pumice.types import PumiceError

HERE = importlib.util.find_spec("lmms_eval") is not None
needs_lmms = pytest.mark.skipif(not HERE, reason="lmms-eval isn't installed")
N = 12
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: test.jsonl}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.{results}
generation_kwargs: {{max_new_tokens: 8, temperature: 0, do_sample: false}}
lmms_eval_specific_kwargs:
  default: {{pre_prompt: "", post_prompt: "\\nIn a word."}}
metric_list:
  - {{metric: odd, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
UTILS = """
from pathlib import Path
from PIL import Image

HERE = Path(__file__).parent

def visual(doc):
    return [Image.open(HERE / name).convert("RGB") for name in doc["images"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + (lmms_eval_specific_kwargs or {}).get("post_prompt", "")

def results(doc, results):
    return {"odd": float(sum(map(ord, results[0])) % 2)}

def nothing(doc, results):
    return {"odd": float("nan")}

def wrong(doc, results):
    raise ValueError("no such field")
"""


@pytest.fixture
def folder(model, processor, tmp_path) -> Path:
    """The tiny model in Pumice's own form."""
    save_own(Assistant(model, processor), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A task over no, one and two pictures, and others that can't be scored."""
    made = tmp_path / "tasks"
    made.mkdir()
    rows = []
    for i in range(N):
        names = [f"{i}-{j}.png" for j in range(i % 3)]
        for j, name in enumerate(names):
            picture(10 * i + j, (20 + 7 * i, 90 - 5 * i)).save(made / name)
        rows.append({"images": names, "question": f"What is it, {i}?", "answer": "yes"})
    (made / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (made / "utils.py").write_text(UTILS)
    (made / "local.yaml").write_text(TASK.format(name="local", results="results"))
    (made / "hollow.yaml").write_text(TASK.format(name="hollow", results="nothing"))
    (made / "bad.yaml").write_text(TASK.format(name="bad", results="wrong"))
    (made / "absent.yaml").write_text(
        TASK.format(name="absent", results="results").replace("test.jsonl", "absent.jsonl")
    )
    return made


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "ACCELERATE_USE_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("OPENAI_API_KEY", "OPENAI_API_URL", "MODEL_VERSION", "API_TYPE"):
        monkeypatch.delenv(name, raising=False)


def answers(out: Path, task: str) -> dict[int, str]:
    rows = map(json.loads, (out / "samples" / f"{task}.jsonl").read_text().splitlines())
    return {row["doc_id"]: row["filtered_resps"][0] for row in rows}


def kept(out: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (out / "journal").glob("*.jsonl"))


def status(outcomes: list[outcomes.Outcome]) -> dict[str, str]:
    return {outcome.benchmark: outcome.status for outcome in outcomes}


@pytest.mark.skipif(HERE, reason="lmms-eval is installed")
def test_without_lmms_eval_the_error_says_how_to_install_it(capsys):
    with pytest.raises(PumiceError, match=r"pip install 'pumice\[eval\]'.*pip install --no-deps lmms-eval==0\.7\.3"):
        runner.check_installed()
    assert cli.main(["eval", "pocket", "--suite", "llava15"]) == 2
    shown = capsys.readouterr().err.strip()
    assert len(shown.splitlines()) == 1
    assert "lmms-eval==0.7.3" in shown


def test_what_suite_does_not_take_is_refused(tmp_path, capsys):
    for extra in (["--tasks", "shop"], ["--json", "a.json"], ["--data", str(tmp_path / "gone")]):
        assert cli.main(["eval", "pocket", "--suite", "elva", *extra]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@needs_lmms
def test_lmms_eval_finds_the_model_by_its_entry_point():
    from importlib.metadata import entry_points

    if not any(point.name == "pumice" for point in entry_points(group="lmms_eval.models")):
        pytest.skip("pumice was installed before it had the entry point")
    from lmms_eval.models import get_model

    assert get_model("pumice").__name__ == "PumiceModel"


def test_the_entry_points_module_is_light():
    code = "import sys, pumice.eval.public.plugin; print({'torch', 'transformers', 'lmms_eval'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


@needs_lmms
def test_a_local_task_runs_and_batches_agree(folder, tasks, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    for out, batch in ((one, 1), (four, 4)):
        (outcome,) = runner.run(str(folder), ["local"], runner.Options(out, batch, include=tasks))
        assert (outcome.status, outcome.n, outcome.counts["asked"]) == ("done", N, N)
        assert 0 < outcome.scores["odd"] < 1
    assert answers(one, "local") == answers(four, "local")
    assert len(set(answers(one, "local").values())) > 8
    saved = json.loads((four / "results" / "local.json").read_text())
    assert saved["lmms_eval"]["results"]["local"]["odd,none"] == saved["scores"]["odd"]
    assert saved["lmms_eval"]["throughput"]["total_gen_tokens"] > 0
    rows = [json.loads(row) for row in (four / "samples" / "local.jsonl").read_text().splitlines()]
    assert all(row["token_counts"][0]["input_tokens"] > 20 for row in rows)
    assert all(row["token_counts"][0]["output_tokens"] <= 8 for row in rows)


@needs_lmms
def test_a_second_run_asks_only_what_changed(folder, tasks, tmp_path):
    options = runner.Options(tmp_path / "out", 4, include=tasks)
    runner.run(str(folder), ["local"], runner.Options(options.out, 4, 5, include=tasks))
    assert kept(options.out) == 5
    (whole,) = runner.run(str(folder), ["local"], options)
    assert (whole.counts["replayed"], whole.counts["asked"]) == (5, N - 5)
    picture(999, (27, 85)).save(tasks / "1-0.png")
    (changed,) = runner.run(str(folder), ["local"], options)
    assert (changed.counts["replayed"], changed.counts["asked"]) == (N - 1, 1)
    fresh = tmp_path / "fresh"
    runner.run(str(folder), ["local"], runner.Options(fresh, 1, include=tasks))
    assert answers(options.out, "local") == answers(fresh, "local")


@needs_lmms
def test_failures_lose_nothing_and_show_in_the_exit_status(folder, tasks, tmp_path, capsys):
    out = tmp_path / "out"
    names = ["hollow", "absent", "mmmu_multi", "mmvet", "local"]
    outcomes = runner.run(str(folder), names, runner.Options(out, 4, include=tasks))
    assert status(outcomes) == {
        "hollow": "failed", "absent": "unreachable", "mmmu_multi": "missing", "mmvet": "judge", "local": "done",
    }  # fmt: skip
    assert "no number for odd" in outcomes[0].note
    assert {path.stem for path in (out / "results").glob("*.json")} == {"hollow", "absent", "local"}
    summary = json.loads((out / "summary.json").read_text())
    assert [row["status"] for row in summary["outcomes"]] == [outcome.status for outcome in outcomes]
    assert cli.main(["eval", str(folder), "--suite", "local", "--include", str(tasks), "--out", str(out)]) == 0
    assert cli.main(["eval", str(folder), "--suite", "local,mmvet", "--include", str(tasks), "--out", str(out)]) == 1
    assert "needs a judge" in capsys.readouterr().out


@needs_lmms
@pytest.mark.slow
def test_a_tasks_own_error_is_shown_as_it_is(folder, tasks, tmp_path):
    (outcome,) = runner.run(str(folder), ["bad"], runner.Options(tmp_path / "out", 4, 2, include=tasks))
    assert (outcome.status, outcome.note) == ("failed", "ValueError: no such field")
    assert kept(tmp_path / "out") == 2


@needs_lmms
def test_pictures_that_cannot_be_read_are_counted(folder, tasks, tmp_path):
    (tasks / "4-0.png").write_bytes(b"not a picture")
    (outcome,) = runner.run(str(folder), ["local"], runner.Options(tmp_path / "out", 4, include=tasks))
    assert (outcome.status, outcome.counts["failed"], outcome.counts["asked"]) == ("failed", 1, N - 1)
    assert (outcome.counts["empty"], outcome.n) == (1, N)
    assert "1 of 12 questions failed" in outcome.note


@needs_lmms
def test_data_that_cannot_be_reached_are_named(folder, tmp_path):
    (outcome,) = runner.run(str(folder), ["docvqa"], runner.Options(tmp_path / "out"))
    assert outcome.status == "unreachable"
    assert "hf download lmms-lab-encoder/DocVQA --repo-type dataset" in outcome.note


@needs_lmms
@pytest.mark.slow
def test_two_processes_share_the_work(folder, tasks, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "two"
    runner.run(str(folder), ["local"], runner.Options(alone, 2, 11, include=tasks))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    command += ["pumice.cli", "eval", str(folder), "--suite", "local", "--include", str(tasks), "--out", str(out)]
    ran = subprocess.run([*command, "-n", "11"], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240, check=False)
    assert ran.returncode == 0
    assert len(list((out / "journal").glob("*.jsonl"))) == 2
    assert answers(out, "local") == answers(alone, "local")
    outcome = json.loads((out / "results" / "local.json").read_text())
    assert outcome["counts"]["asked"] + outcome["counts"]["replayed"] == 12  # 11 and one that pads the second's share
    assert outcome["scores"] == json.loads((alone / "results" / "local.json").read_text())["scores"]


@needs_lmms
def test_rounds_go_on_until_the_task_ends_them(folder, tmp_path):
    from pumice.eval.public.lmms import PumiceModel

    lm = PumiceModel(str(folder), 2, str(tmp_path / "journal"), device="cpu")
    lm.task_dict = {"rounds": {"test": [{"rounds": 1}, {"rounds": 3}, {"rounds": 2}]}}
    seen = []

    def ask(doc: Any, round_idx: int = 0, previous_output: Any = None, previous_round_info: Any = None) -> Any:
        seen.append((doc["rounds"], round_idx, tuple(previous_output or ()), previous_round_info))
        text = f"Round {round_idx} after {previous_output}"
        messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        if not round_idx:
            return messages
        return messages, round_idx >= doc["rounds"], previous_output, f"info {round_idx}"

    requests = [SimpleNamespace(args=("", ask, {"max_new_tokens": 4}, doc, "rounds", "test")) for doc in range(3)]
    outputs = lm.generate_until_multi_round(requests)
    assert [len(one) for one in outputs] == [1, 3, 2]
    assert (3, 2, tuple(outputs[1][:2]), "info 1") in seen
    with pytest.raises(PumiceError, match="likelihood"):
        lm.loglikelihood([])
    with pytest.raises(PumiceError, match="no pretrained"):
        PumiceModel(str(folder), pretrained="x")


class Api(BaseHTTPRequestHandler):
    """An OpenAI-like server: as a judge it prefers the reference, 8 to 6, and sometimes gives no scores."""

    def do_GET(self) -> None:
        self._reply({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = json.dumps(body["messages"])
        text = "I won't." if "What is 2?" in said else "8 6\nThe first is better."
        message = {"message": {"role": "assistant", "content": text}, "index": 0, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        reply = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        self._reply({**reply, "choices": [message], "usage": usage})

    def log_message(self, *_: Any) -> None:
        pass

    def _reply(self, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def api() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def user_files(folder: Path) -> Path:
    folder.mkdir()
    picture(1, (60, 40)).save(folder / "a.png")
    receipt = {"menu": [{"nm": "tea", "price": "2"}], "total": {"price": "2"}}
    cord = [{"image": "a.png", "question": "As JSON?", "answer": answer} for answer in (receipt, json.dumps(receipt))]
    (folder / "cord_instruct.jsonl").write_text("".join(json.dumps(row) + "\n" for row in cord))
    rows = [{"image": "a.png", "question": f"What is {i}?", "answer": "A tea.", "caption": "A bill."} for i in range(4)]
    (folder / "parsing_bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@needs_lmms
def test_user_files_are_tasks_and_a_local_server_can_judge(folder, tmp_path, api, monkeypatch):
    data = user_files(tmp_path / "user")
    names = ["cord_instruct", "parsing_bench"]
    unjudged = runner.run(str(folder), names, runner.Options(tmp_path / "out", data=data))
    assert status(unjudged) == {"cord_instruct": "done", "parsing_bench": "judge"}
    assert unjudged[0].scores == {"ted_accuracy": 0.0, "field_f1": 0.0, "unparsed": 1.0}
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("OPENAI_API_URL", api)
    (judged,) = runner.run(str(folder), names[1:], runner.Options(tmp_path / "out", data=data))
    assert (judged.status, judged.scores) == ("done", {"relative_score": 75.0, "judge_failed": 0.25})


@needs_lmms
def test_a_server_is_asked_over_http(tasks, tmp_path, api):
    pytest.importorskip("openai")
    (outcome,) = runner.run(api, ["local"], runner.Options(tmp_path / "out", 4, include=tasks))
    assert (outcome.status, outcome.n, outcome.counts["failed"]) == ("done", N, 0)
    assert set(answers(tmp_path / "out", "local").values()) == {"8 6\nThe first is better."}
    with pytest.raises(PumiceError, match="doesn't answer"):
        runner.run("http://127.0.0.1:9/v1", ["local"], runner.Options(tmp_path / "out", 4, include=tasks))


def test_receipts_are_scored_as_json():
    doc = {"answer": json.dumps({"menu": [{"nm": "tea"}], "total": {"price": "20"}})}
    right = user_tasks.cord_results(doc, ['Here: {"total": {"price": "20"}, "menu": [{"nm": "tea"}]}.'])
    half = user_tasks.cord_results(doc, ['{"total": {"price": "21"}}'])
    none = user_tasks.cord_results(doc, ["Tea, 20"])
    assert (right["ted_accuracy"], right["unparsed"]) == (1.0, 0.0)
    assert 0 < half["ted_accuracy"] < 1
    assert (none["ted_accuracy"], none["unparsed"]) == (0.0, 1.0)
    assert user_tasks.cord_f1([right["field_f1"]]) == 1.0
    assert user_tasks.cord_f1([right["field_f1"], none["field_f1"]]) == pytest.approx(2 / 3)


def test_a_judges_first_line_is_two_scores():
    assert user_tasks.read_scores("8 6\nbecause 3") == (8.0, 6.0)
    assert user_tasks.read_scores("7.5, 10") == (7.5, 10.0)
    for review in ("", "8", "8 6 4", "I can't", "0 5", "11 2"):
        assert user_tasks.read_scores(review) is None
    assert user_tasks.relative_score([(8.0, 6.0), None, (2.0, 1.0)]) == 70.0
    unjudged = user_tasks.relative_score([None])
    assert unjudged != unjudged
    doc = {"caption": "CAPTION", "question": "QUESTION", "answer": "REFERENCE"}
    prompt = user_tasks.judge_prompt(doc, "OURS")
    places = [prompt.index(text) for text in ("CAPTION", "QUESTION", "REFERENCE", "OURS")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('{"image": "a.png", "question": "?"}', "line 2: without answer"),
        ('{"image": "b.png", "question": "?", "answer": {"a": "1"}}', "line 2: .*b.png: no such file"),
        ('{"image": "a.png", "question": "?", "answer": "tea"}', "line 2: answer isn't an object"),
    ],
)
def test_a_wrong_record_is_named(tmp_path, line, message):
    data = user_files(tmp_path / "user")
    first = (data / "cord_instruct.jsonl").read_text().splitlines()[0]
    (data / "cord_instruct.jsonl").write_text(f"{first}\n{line}\n")
    with pytest.raises(PumiceError, match=message):
        user_tasks.prepare(data, tmp_path / "out")
    with pytest.raises(PumiceError, match=r"expected cord_instruct.jsonl or parsing_bench.jsonl"):
        user_tasks.prepare(tmp_path / "out", tmp_path / "out2")


def test_a_users_file_may_have_a_byte_order_mark_and_any_text(tmp_path):
    data = user_files(tmp_path / "user")
    path = data / "cord_instruct.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0]["question"] = "One\N{LINE SEPARATOR}two\N{NEXT LINE}three"
    text = "".join(json.dumps(record, ensure_ascii=False) + "\r\n" for record in records)
    path.write_bytes(text.encode("utf-8-sig"))
    user_tasks.prepare(data, tmp_path / "out")
    with (tmp_path / "out" / path.name).open(encoding="utf-8") as file:
        assert [json.loads(line)["question"] for line in file] == [record["question"] for record in records]
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(PumiceError, match=r"cord_instruct\.jsonl: not UTF-8 text"):
        user_tasks.prepare(data, tmp_path / "out")


def test_numbers_are_those_of_the_task_or_of_its_parts():
    single = {"results": {"t": {"alias": "t", "em,none": 0.5, "em_stderr,none": 0.1, "submission,none": None}}}
    assert outcomes.scores_of(single, "t", ()) == {"em": 0.5}
    assert outcomes.scores_of(single, "t", ("anls",)) == {}
    group = {"results": {"g": {"alias": "g"}, "a": {"em,none": 0.25}, "b": {"em,none": 0.75}}}
    assert outcomes.scores_of(group, "g", ("em",)) == {"a/em": 0.25, "b/em": 0.75}
    assert outcomes.scores_of({"results": {"g": {"em,none": 0.5}, "a": {"em,none": 0.25}}}, "g", ()) == {"em": 0.5}


def test_answers_that_cannot_be_read_are_counted():
    rows = [{"filtered_resps": [text]} for text in ("B", "(C) because", "", "a dog", f"{outcomes.DEAD} after 5]")]
    letters = outcomes.count_answers(rows, "letter")
    assert (letters["unparsed"], letters["empty"], letters["failed"]) == (2, 1, 1)
    answers = [{"filtered_resps": ["Yes."]}, {"filtered_resps": ["Perhaps"]}]
    assert outcomes.count_answers(answers, "yes-no")["unparsed"] == 1
