"""README's commands and figures: what it tells to type is run here as it stands there."""

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections import Counter
from pathlib import Path

import pytest

from pumice.config import load_recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf8")
LONG = "pumice train recipes/pocket.toml"
"""Hours: only its recipe is read."""
SERVE = "pumice serve"
"""Runs until it is told to end."""


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line and not line.startswith("#")]
PUMICE = [line for line in COMMANDS if line.startswith("pumice ")]


def run_there(command, folder, script=None):
    """Run a shell command, or a Python script, in a folder that looks like a clone; a reason if it failed."""
    for name in ("demo", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", command] if script is None else [sys.executable, "-c", script],
        cwd=folder,
        env=os.environ | {"PATH": path},
        input="What is this?\n",  # for chat
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout


def need_parts():
    from pumice.pocket.parts import PARTS, cache_dir, verify

    missing = [name for name in PARTS if not verify(cache_dir() / name)]
    if missing:
        pytest.skip(f"the pocket model's parts are not in {cache_dir()}: {', '.join(missing)}; make demo fetches them")


def need_renderers():
    check = [str(ROOT / "scripts" / "install-render-packages.sh"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True)
    if done.returncode:
        pytest.skip((done.stdout or done.stderr).strip())


def test_every_command_is_known_here():
    kinds = {line.split()[0] for line in COMMANDS}
    assert kinds == {"make", ".", "pip", "pumice"}
    assert len(PUMICE) >= 6


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make ")])
def test_make(line):
    """Only planned: it would install a virtual environment inside the one that runs this."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    plan = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr


def test_targets_of_the_makefile():
    text = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`make (\w+)", README):
        assert re.search(rf"^{target}:", text, re.MULTILINE), target


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("pip ")])
def test_pip(line):
    """Not run either: the extras and the file of versions are there."""
    words = shlex.split(line)
    assert (ROOT / words[words.index("-c") + 1]).is_file()
    extras = words[words.index("-e") + 1].removeprefix(".[").removesuffix("]").split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in PUMICE if not line.startswith((LONG, SERVE))])
def test_pumice(line, tmp_path):
    need_parts()
    if line.split()[1] in ("train", "eval", "inspect"):
        need_renderers()
    out = run_there(line, tmp_path)
    assert out.strip()
    if "--json" in line:
        assert json.loads(out)["text"].strip()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in PUMICE if line.startswith(SERVE)])
def test_serving(line):
    need_parts()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "pumice.cli", *shlex.split(line)[1:], "--port", str(port)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            assert server.poll() is None, "it ended by itself"
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as said,
            ):
                assert json.load(said)["status"] == "ready"
                break
            time.sleep(0.2)
        else:
            pytest.fail("not ready after two minutes")
    finally:
        server.terminate()
        assert server.wait(60) == 0


def test_long_training_names_a_recipe():
    (line,) = [line for line in PUMICE if line.startswith(LONG)]
    load_recipe(ROOT / shlex.split(line)[2], [])


@pytest.mark.slow
@pytest.mark.parametrize("script", blocks("python"))
def test_python(script, tmp_path):
    need_parts()
    assert run_there("python", tmp_path, script).strip()


def test_files_that_it_names():
    for name in re.findall(r"`([\w./-]+/[\w./-]+)`", README):
        assert name == "demo/out/index.html" or name.startswith("~") or (ROOT / name).exists(), name


def test_figures_of_the_demo():
    rows = json.loads((ROOT / "demo" / "questions.json").read_text(encoding="utf8"))
    files = {name for row in rows for name in row["files"]}
    assert files == {path.name for path in (ROOT / "demo" / "pictures").iterdir()}
    kinds = Counter(Path(name).suffix for name in files)
    assert kinds == {".png": 7, ".pdf": 1, ".mp4": 1}
    assert f"asks {len(rows)} questions about seven pictures, two of them side by side, a PDF and a video" in README
    assert all(set(row) == {"files", "question", "answer", "task"} and row["answer"] for row in rows)
