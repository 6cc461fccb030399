"""Public benchmarks through lmms-eval: one task after the other, each task's results saved before the next begins.

    names ──resolve──> Benchmark* ──each task──> lmms-eval ──> Outcome ──> results/TASK.json, samples/TASK.jsonl
                                                                    └────> summary.json, table, exit status

A task that fails, or whose data can't be reached, is reported and the next one runs. Nothing is forced on the
environment: where data are looked for, and whether the network may be used, is said by HF_HOME, HF_HUB_OFFLINE and
HF_DATASETS_OFFLINE.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pumice.eval.public.benchmarks import Benchmark, resolve
from pumice.eval.public.outcomes import Outcome, beside, count_answers, failure, line, scores_of
from pumice.types import PumiceError

if TYPE_CHECKING:
    from pumice.eval.cost import Cost
    from pumice.eval.public.answering import Tally

VERSION = "0.7.3"
INSTALL = f"pip install 'pumice[eval]' && pip install --no-deps lmms-eval=={VERSION}"
JUDGE_URL = "OPENAI_API_URL"


@dataclass(frozen=True)
class Options:
    """``n`` questions a task at most; ``data`` holds the files of `user_tasks`, ``include`` own tasks. With ``cost`` it
    is measured first what the model costs on the embedded suite's pictures.
    """

    out: Path
    batch: int = 8
    n: int | None = None
    data: Path | None = None
    include: Path | None = None
    cost: bool = False


def check_installed() -> None:
    """Raises PumiceError with the lines that install lmms-eval unless it is there in the right version."""
    if importlib.util.find_spec("lmms_eval") is None:
        raise PumiceError(f"public benchmarks need lmms-eval, which isn't installed: {INSTALL}")
    found = importlib.metadata.version("lmms-eval")
    if found != VERSION:
        raise PumiceError(f"lmms-eval {found} is installed; scores are those of {VERSION}: {INSTALL}")


def run(model: str, names: Sequence[str], options: Options) -> list[Outcome]:
    """Run what the names of suites, benchmarks and tasks stand for; ``model`` is what `pumice.load` takes, or a URL.

    Raises:
        PumiceError: lmms-eval is missing, an unknown name, or a model that can't be opened.
    """
    check_installed()
    if options.cost and _is_url(model):
        raise PumiceError(f"--cost measures a model on this machine, not what {model} serves")
    manager = _manager(options)
    plan = resolve(names, manager.all_tasks)
    outcomes, lm, cost = [], None, None
    for benchmark in plan:
        skipped = _skip(benchmark, manager.all_tasks)
        if skipped is not None:
            outcomes.append(skipped)
            continue
        if lm is None:
            lm = _model(model, options)
            cost = _measure(lm, model) if options.cost else None
        for task in benchmark.runs():
            outcome, results = _run_task(benchmark, task, lm, manager, options)
            outcomes.append(outcome)
            if lm.rank == 0:
                _save(outcome, results, options.out)
                print(line(outcome), flush=True)
    if lm is None or lm.rank == 0:
        _write(options.out / "summary.json", json.dumps(_summary(model, outcomes, cost), indent=2, ensure_ascii=False))
    return outcomes


def _manager(options: Options) -> Any:
    from lmms_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]
    from loguru import logger  # pyright: ignore[reportMissingImports]

    logger.remove()  # lmms-eval tells every step
    logger.add(sys.stderr, level="WARNING")
    folders = [str(options.include)] if options.include else []
    if options.data is not None:
        from pumice.eval.public import user_tasks

        user_tasks.prepare(options.data, options.out / "tasks")
        folders.append(str(options.out / "tasks"))
    return TaskManager("WARNING", include_path=folders or None)


def _model(model: str, options: Options) -> Any:
    """A Pumice model with its journal, or lmms-eval's own client of a server."""
    if _is_url(model):
        from lmms_eval.models import get_model  # pyright: ignore[reportMissingImports]

        if importlib.util.find_spec("openai") is None:
            raise PumiceError("a server is asked through the package openai, which isn't installed: pip install openai")
        served = f"model_version={_served(model)},base_url={model},api_key={os.environ.get('PUMICE_API_KEY', 'EMPTY')}"
        return get_model("openai").create_from_arg_string(f"{served},timeout=600")
    from pumice.eval.public.lmms import PumiceModel

    return PumiceModel(model, options.batch, str(options.out / "journal"))


def _measure(lm: Any, model: str) -> Cost:
    """What a Pumice model costs, which the first process prints."""
    from pumice.eval.cost import measure, sentence

    cost = measure(lm.answerer.assistant, model)
    if lm.rank == 0:
        print(sentence(cost))
    return cost


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _served(url: str) -> str:
    """The name of the model that a server has."""
    from urllib.request import Request, urlopen

    key = os.environ.get("PUMICE_API_KEY", "EMPTY")
    try:
        request = Request(f"{url.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})
        with urlopen(request, timeout=30) as reply:
            return str(json.load(reply)["data"][0]["id"])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise PumiceError(f"{url}/models doesn't answer ({error}); expected the address of an OpenAI API") from None


def _skip(benchmark: Benchmark, known: Sequence[str]) -> Outcome | None:
    """Why a benchmark can't be run at all, if so."""
    if not benchmark.tasks:
        return Outcome(benchmark.key, "", "missing", note=benchmark.remark)
    if not benchmark.runs():
        why = f"needs a judge: set {JUDGE_URL} (any server of that API), {benchmark.judge_key} and MODEL_VERSION"
        return Outcome(benchmark.key, " ".join(benchmark.tasks), "judge", note=why)
    absent = [task for task in benchmark.runs() if task not in known]
    if absent:
        return Outcome(benchmark.key, " ".join(absent), "missing", note=benchmark.remark)
    return None


def _run_task(
    benchmark: Benchmark, task: str, lm: Any, manager: Any, options: Options
) -> tuple[Outcome, dict[str, Any]]:
    from lmms_eval.evaluator import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lmms_eval.models.model_utils.gen_metrics import reset_logged_metrics  # pyright: ignore[reportMissingImports]

    reset_logged_metrics()
    before = len(getattr(lm, "tallies", []))
    address = os.environ.get(JUDGE_URL)
    try:
        if address:
            os.environ[JUDGE_URL] = benchmark.judge_url(address)
        results = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=options.n, batch_size=options.batch)
    except (Exception, SystemExit) as error:  # whatever a task's own code raises: the other tasks must run
        return failure(benchmark, task, error), {}
    finally:
        if address:
            os.environ[JUDGE_URL] = address
    counts = _counts(getattr(lm, "tallies", [])[before:])
    if results is None:  # another rank has them
        return Outcome(benchmark.key, task, "done"), {}
    samples = [sample for group in results.get("samples", {}).values() for sample in group]
    counts |= count_answers(samples, benchmark.answers)
    scores = scores_of(results, task, benchmark.metrics)
    bad = [name for name, value in scores.items() if value != value]
    status, note = "done", benchmark.remark
    if not scores or bad:
        status, note = "failed", f"no number for {', '.join(bad) or 'any metric'}"
    elif counts["failed"]:
        status, note = "failed", f"{counts['failed']} of {len(samples)} questions failed; they count as wrong"
    return Outcome(benchmark.key, task, status, scores, len(samples), counts, note), results


def _counts(tallies: Sequence[Tally]) -> dict[str, int]:
    """The counts of all processes together."""
    import torch.distributed as dist

    mine: dict[str, int] = {}
    for tally in tallies:
        for name in ("asked", "replayed", "failed", "cut", "shortened", "greedy"):
            mine[name] = mine.get(name, 0) + tally.total(name)
    every: list[Any] = [mine]
    if dist.is_available() and dist.is_initialized():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, mine)
    return {name: sum(one.get(name, 0) for one in every) for name in {"failed", *(key for one in every for key in one)}}


def _save(outcome: Outcome, results: Mapping[str, Any], out: Path) -> None:
    """results/TASK.json holds the outcome and what lmms-eval says of the run, samples/TASK.jsonl every answer."""
    from lmms_eval.utils import handle_non_serializable  # pyright: ignore[reportMissingImports]

    kept = {key: value for key, value in results.items() if key != "samples"}
    text = json.dumps({**asdict(outcome), "lmms_eval": kept}, indent=2, ensure_ascii=False, default=str)
    _write(out / "results" / f"{outcome.task}.json", text)
    lines = [
        json.dumps({"task": name, **sample}, ensure_ascii=False, default=handle_non_serializable) + "\n"
        for name, samples in results.get("samples", {}).items()
        for sample in samples
    ]
    if lines:
        _write(out / "samples" / f"{outcome.task}.jsonl", "".join(lines))


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


def _summary(model: str, outcomes: Sequence[Outcome], cost: Cost | None) -> dict[str, Any]:
    import pumice

    versions = {"pumice": pumice.__version__, "lmms-eval": VERSION}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    about = {"model": model, "versions": versions, "cost": asdict(cost) if cost else None}
    return about | {"outcomes": [asdict(outcome) for outcome in outcomes]}


def main(model: str, names: Sequence[str], options: Options) -> int:
    """Run, print what came of each task, and give 1 unless every one of them has a score."""
    outcomes = run(model, names, options)
    if int(os.environ.get("RANK", 0)) == 0:
        print("\n".join(["", *map(line, outcomes), *beside(outcomes)]))
        print(f"results, answers and journal: {options.out}")
    return int(any(outcome.status != "done" for outcome in outcomes))
