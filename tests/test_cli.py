"""The command line: mistakes are one line and come before any model is loaded, answers alone go to stdout."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import pumice.train
from pumice import cli
from pumice.types import PumiceError

PUMICE = [sys.executable, "-m", "pumice.cli"]
TINY = Path(__file__).parents[1] / "recipes" / "tiny.toml"


class FakeAssistant:
    """Answers "line one, line two", streams in pieces, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.fail = None

    def ask(self, pictures, question, max_tokens=128):
        self.asked.append(([picture.size for picture in pictures], question, max_tokens))
        return SimpleNamespace(text=f"line one\nof {question}", tokens=5, visual_tokens=72, ms=12.34567, logprob=-0.51,
                               reader=False, left_out=0)  # fmt: skip

    def chat(self, messages, stream=False, max_tokens=256):
        assert stream
        self.asked.append(messages)
        yield "said "
        if self.fail:
            raise self.fail
        yield f"to {len(messages)}"
        yield SimpleNamespace(text="said to")


@pytest.fixture
def assistant(monkeypatch):
    fake = FakeAssistant()
    monkeypatch.setattr("pumice.load", lambda name, reader=False: fake, raising=False)
    return fake


@pytest.fixture
def no_model(monkeypatch):
    def load(name, reader=False):
        raise AssertionError("the model was loaded before the arguments were checked")

    monkeypatch.setattr("pumice.load", load, raising=False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a whole picture, a second one, one cut short, a text and an empty file."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((60, 40), 50).convert("RGB").save("a.png")
    Image.new("RGB", (30, 30), "red").save("b.png")
    Path("cut.png").write_bytes(Path("a.png").read_bytes()[:900])
    Path("text.png").write_text("no picture")
    Path("empty.png").touch()
    return tmp_path


def epilog_examples(name):
    """The lines of a command's help that begin with pumice, as argument lists without redirections."""
    text = cli.COMMANDS[name][0](name).format_help().partition("examples:")[2]
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("pumice ")]
    return [shlex.split(line.partition(" < ")[0]) for line in lines]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_has_examples_that_parse(name, capsys):
    assert cli.main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: pumice {name}")
    examples = epilog_examples(name)
    assert len(examples) >= 2
    for words in examples:
        assert words[1] == name
        cli.COMMANDS[name][0](name).parse_intermixed_args(words[2:])


def test_top_help_and_version(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(re.search(rf"^  {name}  ", out, re.MULTILINE) for name in cli.COMMANDS)
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"pumice \d+\.\d+\S*\n", capsys.readouterr().out)
    assert cli.main([]) == 2
    assert not capsys.readouterr().out


MISTAKES = {
    "aks a.png x": "did you mean ask?",
    "xyz": "choose one of ask, chat",
    "--nope": "--nope",
    "ask": "required: PICTURE... QUESTION (see pumice ask --help)",
    "ask 'What is this?'": "no picture",
    "ask a.png": "no question",
    "ask a.png b.png": "no question",
    "ask a.png ''": "question is empty",
    "ask a.png b.png -q ' '": "question is empty",
    "ask gone.png -q x": "gone.png: no such file",
    "ask a.png gone.png x": "gone.png: no such file",
    "ask . x": ".: not a regular file",
    "ask text.png x": "text.png: not a picture",
    "ask empty.png x": "empty.png: empty",
    "ask cut.png x": "cut.png: damaged or cut short",
    "ask https://example.org/a.png x": "https addresses aren't fetched",
    "ask - - x": "read only once",
    "ask a.png x --max-tokens 0": "whole number of 1 or more, not '0'",
    "ask a.png x --max-tokens many": "whole number of 1 or more",
    "ask a.png x --colour": "--colour",
    "chat": "required: PICTURE",
    "chat -": "name the picture's file",
    "chat cut.png": "cut.png: damaged or cut short",
    "train gone.toml": "gone.toml",
    f"train {TINY} steps": "key=value",
    f"train {TINY} sed=1": "nearest is 'seed'",
    f"train {TINY} --out new --resume": "no run to resume",
    f"train {TINY} --workers 0": "whole number",
    "eval": "required: MODEL",
    "plan": "required: MODEL",
    "export here": "required: --to, --out",
    "export here --to onnx --out there": "choose from",
    "export here --to hf --precision f16 --out there": "--precision is for --to gguf",
    "export no-such-folder --to hf --out there": "no-such-folder",
    "plan no-such-model --image 10x10": "unknown model 'no-such-model'",
    "plan pocket --image 10": "10",
    "eval pocket --tasks ,": "--tasks is empty",
    "eval pocket --tasks sums": "no task 'sums'",
    "eval pocket -n 0": "whole number",
    "eval pocket --json gone/scores.json": "gone/scores.json: can't be written",
    "eval pocket --html .": "can't be written",
}


@pytest.mark.parametrize("words", MISTAKES)
@pytest.mark.usefixtures("folder", "no_model")
def test_mistakes_are_one_line(words, capsys):
    assert cli.main(shlex.split(words)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("pumice: ")
    assert err.count("\n") == 1
    assert MISTAKES[words] in err


@pytest.mark.usefixtures("folder", "no_model")
def test_debug_shows_where(monkeypatch):
    monkeypatch.setenv("PUMICE_DEBUG", "1")
    with pytest.raises(PumiceError, match="no such file"):
        cli.main(["ask", "gone.png", "x"])


def test_mistakes_and_help_import_no_torch(folder):
    run = "import sys; from pumice.cli import main; main(sys.argv[1:])"
    script = f"{run}; print({{'torch', 'transformers'}} & set(sys.modules))"
    for words in (["--help"], ["ask", "cut.png", "x"], ["train", str(TINY), "x=1"], ["eval", "m", "--tasks", "x"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, cwd=folder)
        assert done.stdout.endswith("set()\n"), (words, done)
    for heavy in ("numpy", "PIL"):  # for help not even these
        check = f"import sys; from pumice.cli import main; main(['--help']); print({heavy!r} in sys.modules)"
        assert subprocess.check_output([sys.executable, "-c", check], text=True).endswith("False\n")


def test_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PUMICE, "--version"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (cli.PIPE_CLOSED, "")


def test_interrupted(folder, monkeypatch, capsys):
    def load(name, reader=False):
        raise KeyboardInterrupt

    monkeypatch.setattr("pumice.load", load, raising=False)
    assert cli.main(["ask", "a.png", "x"]) == 130
    assert capsys.readouterr() == ("", "")


def test_ask_plain(folder, assistant, capsys):
    assert cli.main(["ask", "a.png", "--max-tokens", "7", "x"]) == 0
    assert capsys.readouterr().out == "line one\nof x\n"
    assert cli.main(["ask", "a.png", "b.png", "x", "-q", "y"]) == 0
    assert capsys.readouterr().out == "line one of x\nline one of y\n"
    assert cli.main(["ask", "a.png", "b.png", "-q", "z"]) == 0
    sizes = [(60, 40), (30, 30)]
    assert assistant.asked == [([(60, 40)], "x", 7), (sizes, "x", 128), (sizes, "y", 128), (sizes, "z", 128)]


def test_ask_json(folder, assistant, capsys):
    assert cli.main(["ask", "--json", "a.png", "Größe?", "-q", "y"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == {
        "pictures": ["a.png"],
        "question": "Größe?",
        "text": "line one\nof Größe?",
        "tokens": 5,
        "visual_tokens": 72,
        "ms": 12.3,
        "logprob": -0.51,
        "reader": False,
    }
    assert [row["question"] for row in rows] == ["Größe?", "y"]


def test_ask_standard_input(folder, assistant, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path("b.png").read_bytes())))
    assert cli.main(["ask", "-", "x"]) == 0
    assert assistant.asked == [([(30, 30)], "x", 128)]


def talk(monkeypatch, lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return cli.main(["chat", "a.png"])


def test_chat_keeps_history_until_reset(folder, assistant, monkeypatch, capsys):
    assert talk(monkeypatch, ["one", "", "/help", "two", "/paint", "/reset", "three", "/quit", "four"]) == 0
    out, err = capsys.readouterr()
    assert out == "said to 1\nsaid to 3\nsaid to 1\n"
    assert "unknown command /paint" in err
    first, second, third = assistant.asked
    assert [part["type"] for part in first[0]["content"]] == ["image", "text"]
    assert second[:2] == [first[0], {"role": "assistant", "content": "said to 1"}]
    assert second[2] == {"role": "user", "content": [{"type": "text", "text": "two"}]}
    assert [part["type"] for part in third[0]["content"]] == ["image", "text"]


@pytest.mark.parametrize("error", [PumiceError("too long"), KeyboardInterrupt()])
def test_chat_forgets_a_question_that_failed(folder, assistant, monkeypatch, capsys, error):
    assistant.fail = error
    assert talk(monkeypatch, ["one", "two"]) == 0
    assert [len(messages) for messages in assistant.asked] == [1, 1]
    assert ("too long" if isinstance(error, PumiceError) else "forgotten") in capsys.readouterr().err


def test_train_hands_over(folder, monkeypatch):
    calls = []
    fake = SimpleNamespace(main=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "pumice.train.run", fake)
    monkeypatch.setattr(pumice.train, "run", fake, raising=False)
    assert cli.main(["train", str(TINY), "--out", "here", "seed=3", "--workers", "2"]) == 0
    Path("here").mkdir()
    Path("here/recipe.toml").touch()
    assert cli.main(["train", str(TINY), "--out", "here", "--resume"]) == 0
    assert cli.main(["train", str(TINY), "--loaders", "0", "--track", "wandb, tensorboard"]) == 0
    name, data = str(TINY), None
    assert calls == [
        (name, ["seed=3"], Path("here"), 2, data, None, []),
        (name, [], Path("here"), 1, data, None, []),
        (name, [], Path("runs/tiny"), 1, data, 0, ["wandb", "tensorboard"]),
    ]


def test_eval_hands_over(folder, monkeypatch, capsys):
    calls, failed = [], []

    def main(*arguments, **chosen):
        calls.append((*arguments, chosen))
        return SimpleNamespace(failed=failed)

    monkeypatch.setattr("pumice.eval.suite.embedded.main", main, raising=False)
    assert cli.main(["eval", "pocket", "--tasks", "shop, objects", "-n", "3", "--json", "s.json"]) == 0
    assert cli.main(["eval", "pocket"]) == 0
    failed.append(SimpleNamespace(item=SimpleNamespace(question="What?"), skipped="too long"))
    assert cli.main(["eval", "pocket", "--out", "scores"]) == 1
    assert "1 questions failed, first: 'What?': too long" in capsys.readouterr().err
    files = Path("scores/embedded.json"), Path("scores/embedded.html")
    assert calls == [
        ("pocket", ["shop", "objects"], 3, Path("s.json"), None, {}),
        ("pocket", None, 200, None, None, {}),
        ("pocket", None, 200, *files, {"kept": Path("scores/journal")}),
    ]
