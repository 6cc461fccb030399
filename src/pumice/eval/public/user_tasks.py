"""CORD-Instruct and Parsing-Bench: lmms-eval tasks over files that the user brings.

    DIR/cord_instruct.jsonl, DIR/parsing_bench.jsonl ──prepare──> checked records + YAML ──lmms-eval──> scores

lmms-eval has neither. A record is a line of JSON; ``image`` is a path beside the file.

    cord_instruct   {"image", "question", "answer": {...} or its JSON text}
    parsing_bench   {"image", "question", "answer": the reference, "caption": what the judge reads in place of the
                    picture, "category"}
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from pumice.eval.metrics.trees import field_f1, read_json, ted_accuracy
from pumice.types import PumiceError
from pumice.vision.media import decode, open_image

FIELDS = {
    "cord_instruct": ("image", "question", "answer"),
    "parsing_bench": ("image", "question", "answer", "caption"),
}
"""The tasks, and what a record of each must have."""

JUDGE = "gpt-4o-2024-05-13"
"""The judge of ELVA's paper, unless MODEL_VERSION names another."""
RULE = (
    "Two assistants answered a question about a document that you can't see; its description stands above. Rate how "
    "helpful, relevant, accurate and complete each answer is, from 1 to 10. Write on the first line the two numbers "
    "only, the first assistant's and then the second's, with a blank between them; then explain, without letting the "
    "order of the answers matter."
)


def prepare(folder: Path, out: Path) -> list[str]:
    """Check the files of ``folder`` and write them as tasks to ``out``, which lmms-eval then includes; gives the names.

    Raises:
        PumiceError: there is no file, or a record is wrong; the message says which line.
    """
    names = [name for name in FIELDS if (folder / f"{name}.jsonl").is_file()]
    if not names:
        wanted = " or ".join(f"{name}.jsonl" for name in FIELDS)
        raise PumiceError(f"{folder}: expected {wanted} in it")
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name}.jsonl"
        records = [_record(line, path, number, name) for number, line in enumerate(_lines(path), 1) if line.strip()]
        if not records:
            raise PumiceError(f"{path}: empty; expected a record a line")
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (out / path.name).write_text(text, encoding="utf-8")
        source = files("pumice.eval.public").joinpath("tasks", f"{name}.yaml")
        (out / f"{name}.yaml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return names


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines: a text of JSON may hold U+2028 and other signs that end a line elsewhere.
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise PumiceError(f"{path}: not UTF-8 text") from None


def _record(line: str, path: Path, number: int, name: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise PumiceError(f"{where}: not JSON ({error})") from None
    missing = [field for field in FIELDS[name] if not isinstance(record, dict) or record.get(field) in (None, "")]
    if missing:
        raise PumiceError(f"{where}: without {', '.join(missing)}; expected {', '.join(FIELDS[name])}")
    answer = record["answer"]
    if name == "cord_instruct":
        answer = read_json(answer) if isinstance(answer, str) else answer
        if not isinstance(answer, dict) or not answer:
            raise PumiceError(f"{where}: answer isn't an object with fields; expected what the receipt says, as JSON")
        answer = json.dumps(answer, ensure_ascii=False)  # as text, since tables have one type a column
    image = path.parent / str(record["image"])
    if not image.is_file():
        raise PumiceError(f"{where}: {image}: no such file")
    kept = {"image": str(image.resolve()), "question": str(record["question"]), "answer": str(answer)}
    return {**kept, "caption": str(record.get("caption", "")), "category": str(record.get("category", ""))}


def visual(doc: Mapping[str, Any]) -> list[Image.Image]:
    """The record's picture."""
    return [decode(open_image(doc["image"]))]


def text(doc: Mapping[str, Any]) -> str:
    """The record's question."""
    return doc["question"]


def cord_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Scores of one receipt; an answer that holds no JSON counts as an empty object, and as unparsed."""
    found, truth = read_json(results[0]), json.loads(doc["answer"])
    return {
        "ted_accuracy": ted_accuracy(found or {}, truth),
        "field_f1": (found or {}, truth),
        "unparsed": float(found is None),
    }


def cord_f1(pairs: Sequence[tuple[Any, Any]]) -> float:
    """F1 of the fields over all receipts."""
    return field_f1([found for found, _ in pairs], [truth for _, truth in pairs])


def parsing_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The judge's two scores for one answer; where it gives none, or can't be asked, that is counted."""
    try:
        scores = read_scores(_review(doc, results[0]))
    except Exception as error:  # a network's, or any that a judge's client raises: one answer must not end the run
        print(f"the judge failed: {' '.join(str(error).split())[:200]}")
        scores = None
    return {"relative_score": scores, "judge_failed": float(scores is None)}


def relative_score(scores: Sequence[tuple[float, float] | None]) -> float:
    """100 * the answers' mean score / the references'; NaN where the judge gave none."""
    given = [pair for pair in scores if pair is not None]
    reference = sum(first for first, _ in given)
    return 100 * sum(second for _, second in given) / reference if reference else float("nan")


def read_scores(review: str) -> tuple[float, float] | None:
    """The two numbers of the first line, if it has two and they are from 1 to 10."""
    lines = review.strip().splitlines()
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", lines[0])] if lines else []
    if len(numbers) != 2 or not all(1 <= number <= 10 for number in numbers):
        return None
    return numbers[0], numbers[1]


def judge_prompt(doc: Mapping[str, Any], answer: str) -> str:
    """What the judge is asked: the description, the question, the reference and the answer."""
    return (
        f"[Document]\n{doc['caption']}\n\n[Question]\n{doc['question']}\n\n"
        f"[Assistant 1]\n{doc['answer']}\n\n[Assistant 2]\n{answer}\n\n[Task]\n{RULE}\n"
    )


def _review(doc: Mapping[str, Any], answer: str) -> str:
    from lmms_eval.llm_judge import Request, ServerConfig, get_server  # pyright: ignore[reportMissingImports]

    config = ServerConfig(
        model_name=os.environ.get("MODEL_VERSION", JUDGE), temperature=0.2, max_tokens=1024, num_retries=3,
        retry_delay=2,
    )  # fmt: skip
    server = get_server(os.environ.get("API_TYPE", "openai"), config)
    message = {"role": "user", "content": judge_prompt(doc, answer)}
    return server.evaluate(Request(messages=[message], config=config)).content
