"""The table of benchmarks says what lmms-eval's own files say, and names what lmms-eval doesn't have."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pumice.eval.public.benchmarks import parse, resolve, table
from pumice.eval.public.outcomes import Outcome, beside
from pumice.eval.public.papers import published
from pumice.types import PumiceError

PAPERS = """
AI2D ChartQA DocVQA InfoVQA MME MMBench MMBench-CN MM-Vet MathVerse MathVista MMMU RealWorldQA Vibe-Eval
MM-LiveBench LLaVA-Wilder BLINK MuirBench Q-Bench Mantis-Eval MVBench ActivityNet-QA EgoSchema MLVU Video-MME NExT-QA
PerceptionTest VideoChatGPT VideoDetailCaption SEED-Bench SEED-Bench-2-Plus TextVQA VQAv2 GQA VizWiz POPE MMStar
HallusionBench OCRBench CORD CORD-Instruct Parsing-Bench"""
OWN = ("cord_instruct", "parsing_bench")
ROOT = Path(__file__).parent.parent


def data() -> dict[str, Any]:
    return tomllib.loads(files("pumice.eval.public").joinpath("benchmarks.toml").read_text(encoding="utf-8"))


def test_every_benchmark_of_the_papers_is_there():
    names = {one.name for one in table().benchmarks.values()}
    assert not set(PAPERS.split()) - names
    assert {key: len(keys) for key, keys in table().suites.items()} == {
        "llava15": 12, "next": 14, "onevision": 34, "elva": 13,
    }  # fmt: skip
    assert all(len(set(keys)) == len(keys) for keys in table().suites.values())
    assert all(one.tasks or one.remark for one in table().benchmarks.values()), "what is missing must say so"


def test_a_judge_that_is_missing_leaves_nothing_to_run():
    held = table().benchmarks
    judged = {key for key, one in held.items() if one.judge == "yes"}
    assert {"mmvet", "mathverse", "mathvista", "vibe_eval", "live_bench", "wilder", "llava_w", "activitynetqa",
            "videochatgpt", "videodc", "hallusion", "parsing_bench"} <= judged  # fmt: skip
    assert all(held[key].runs({}) == () for key in judged)
    key = {"OPENAI_API_KEY": "x"}
    assert held["mmvet"].runs(key) == ("mmvet",)
    assert held["vibe_eval"].runs(key) == ()
    assert held["vibe_eval"].runs({"REKA_API_KEY": "x"}) == ("vibe_eval",)
    assert held["mmbench"].runs({}) == ("mmbench_en_dev_static",)
    assert held["mmbench"].runs(key) == ("mmbench_en_dev",)
    assert held["mmbench_cn"].runs({}) == ()
    assert held["docvqa"].runs({}) == ("docvqa_val",)


def test_a_judges_address_is_written_as_each_task_wants_it():
    held, base, full = table().benchmarks, "http://host:1/v1", "http://host:1/v1/chat/completions"
    for given in (base, f"{base}/", full):
        assert held["mmvet"].judge_url(given) == base
        assert held["hallusion"].judge_url(given) == full


def test_names_become_benchmarks_each_once():
    assert [one.key for one in resolve(["elva", "docvqa", "llava15"])] == [
        *table().suites["elva"], *(key for key in table().suites["llava15"] if key not in table().suites["elva"]),
    ]  # fmt: skip
    test, static = resolve(["docvqa_test", "mmbench_en_dev_static"])
    assert (test.tasks, test.metrics, test.data) == (("docvqa_test",), (), "lmms-lab-encoder/DocVQA")
    assert static.runs({}) == ("mmbench_en_dev_static",)
    assert resolve(["videochatgpt_temporal"])[0].runs({}) == ()
    assert resolve(["mine"], ["mine"])[0].runs({}) == ("mine",)
    with pytest.raises(PumiceError, match="'docvqq'; did you mean docvqa"):
        resolve(["docvqq"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held["benchmarks"]["gqa"].update(metric="x"), "benchmark gqa: no field metric"),
        (lambda held: held["benchmarks"]["gqa"].update(judge="maybe"), "benchmark gqa: judge is one of"),
        (lambda held: held["benchmarks"]["gqa"].update(tasks=["pope"]), "tasks of two benchmarks: pope"),
        (lambda held: held["suites"].update(mine=["gqa", "cqa"]), "suite mine: no benchmark cqa"),
    ],
)
def test_a_wrong_table_is_an_error(change, message):
    held = copy.deepcopy(data())
    change(held)
    with pytest.raises(PumiceError, match=message):
        parse(held)


def test_the_data_files_are_packaged():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["pumice"]
    for name in (
        "eval/public/benchmarks.toml",
        "eval/public/tasks/cord_instruct.yaml",
        "eval/public/tasks/parsing_bench.yaml",
        "eval/public/papers.toml",
        "eval/smoke/pictures.toml",
    ):
        assert (ROOT / "src/pumice" / name).is_file()
        assert any(fnmatch(name, pattern) for pattern in patterns)


@pytest.fixture(scope="module")
def upstream() -> dict[str, dict[str, Any]]:
    """lmms-eval's YAML by task, includes merged, functions as text; groups have ``group``."""
    pytest.importorskip("lmms_eval")
    import yaml
    from lmms_eval.tasks import TaskManager

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix} {node.value}")

    def load(path: Path) -> dict[str, Any]:
        held = yaml.load(path.read_text(encoding="utf-8"), Loader) or {}
        above = held.pop("include", None) or []
        merged: dict[str, Any] = {}
        for name in [above] if isinstance(above, str) else above:
            merged |= load(path.parent / name)
        return merged | held

    index = TaskManager("ERROR").task_index
    paths = {name: entry["yaml_path"] for name, entry in index.items() if isinstance(entry.get("yaml_path"), str)}
    wanted = [
        task for one in table().benchmarks.values() for task in (*one.tasks, *one.also, one.without_judge) if task
    ]
    return {task: load(Path(paths[task])) for task in wanted if task in paths}


def leaves(upstream: Mapping[str, dict[str, Any]], task: str) -> dict[str, Any]:
    """A task's YAML; of a group nothing."""
    held = upstream[task]
    return {} if isinstance(held.get("task"), list) else held


def test_the_tasks_are_lmms_evals(upstream):
    wanted = {
        task for one in table().benchmarks.values() for task in (*one.tasks, *one.also, one.without_judge) if task
    }
    assert wanted - set(upstream) == set(OWN)


def test_metrics_data_lengths_and_suffixes_are_lmms_evals(upstream):
    compared = 0
    for key, one in table().benchmarks.items():
        told = [leaves(upstream, task) for task in one.tasks if task in upstream]
        told = [held for held in told if held]
        if not told or key in OWN:
            continue
        metrics = {metric["metric"] for held in told for metric in held["metric_list"]}
        assert set(one.metrics) <= metrics, key
        for held in told:
            assert held["dataset_path"] == one.data, key
            generation = held.get("generation_kwargs") or {}
            assert generation.get("max_new_tokens", 0) == one.max_new_tokens, key
            default = (held.get("lmms_eval_specific_kwargs") or {}).get("default") or {}
            if "post_prompt" in default:
                assert default["post_prompt"] == one.suffix, key
            compared += 1
    assert compared > 40


def test_judges_are_asked_where_lmms_evals_tasks_look(upstream):
    """A task that posts to OPENAI_API_URL as it is has the whole address as its default."""
    import lmms_eval.tasks

    folder = Path(lmms_eval.tasks.__file__).parent
    for key, name in {
        "live_bench": "live_bench/utils.py", "activitynetqa": "activitynetqa/utils.py", "mmvet": "mmvet/utils.py",
        "videochatgpt": "videochatgpt/utils.py", "videodc": "video_detail_description/utils.py",
        "hallusion": "hallusion_bench/utils.py", "mmbench": "mmbench/en_utils.py", "mmbench_cn": "mmbench/cn_utils.py",
        "mathvista": "mathvista/mathvista_evals.py", "wilder": "llava_wilder/utils.py",
    }.items():  # fmt: skip
        whole = "/chat/completions" in (folder / name).read_text(encoding="utf-8")
        assert table().benchmarks[key].judge_path == ("/chat/completions" if whole else ""), key


def test_the_papers_figures_stand_beside_a_score():
    done = Outcome("docvqa", "docvqa_val", "done", {"anls": 0.7}, 10)
    (line,) = beside([done, done, Outcome("docvqa", "docvqa_test", "failed"), Outcome("chartqa", "chartqa", "failed")])
    first = published("docvqa")[0]
    assert line.startswith(f"published, docvqa: {first.model} {first.figure:g}")
    assert beside([]) == []
