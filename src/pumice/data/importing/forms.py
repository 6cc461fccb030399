"""Converters of published forms: their rows as entries in LLaVA's form.

    cauldron   parquet: images [{bytes}], texts [{user, assistant}]          (The Cauldron, FineVision)
    docvqa     {"data": [{question, answers, image}]} with documents/, or parquet
    chartqa    train/*.json [{query, label, imgname}] with png/, or parquet
    cord       parquet: image, ground_truth (JSON with gt_parse), or image/ and json/ beside each other
    ureader    JSONL: image, conversations with "<image>" as a turn of its own

A row that isn't what its form says is counted and left out; nothing is mended in silence.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pumice.data.conversations import MARKER
from pumice.data.importing.rows import JsonRows, Rows, embedded_bytes, is_there
from pumice.data.importing.writing import LEFT_OUT, Entry, conversation_of
from pumice.data.parquet import ParquetRows
from pumice.data.sources import states
from pumice.types import PumiceError

SHORT_ANSWER = "Answer the question using a single word or phrase."
"""LLaVA-1.5's prompt for short answers: what the mixtures end these sets' questions with."""
CORD_PROMPT = "Read the receipt and give its fields as JSON."
Convert = Callable[[dict[str, Any]], Entry]


class Converted:
    """Rows with a converter: `Entries` for writing. ``media`` is the folder of their pictures, None where embedded."""

    def __init__(self, rows: Rows, convert: Convert, media: Path | None, source: str) -> None:
        self.rows, self.convert, self.media, self.source = rows, convert, media, source

    @property
    def settings(self) -> str:
        """The files; the form follows from them and the name."""
        return f"{self.source} {states(self.rows.files)}"

    def __len__(self) -> int:
        return len(self.rows)

    def entry(self, row: int, counts: Counter[str]) -> Entry | None:
        """A row as a record, or None with the reason in ``counts``."""
        try:
            entry = self.convert(self.rows.row(row))
            named = [one for one in entry.media if isinstance(one, str)]
            if self.media and not all(is_there(self.media / one) for one in named):
                counts[f"{LEFT_OUT}picture missing"] += 1
                return None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, PumiceError):
            counts[f"{LEFT_OUT}not of this form"] += 1
            return None
        said = {"id": f"{self.source}-{row}", "data_source": self.source, **entry.said}
        return Entry(said, entry.media)


def _entry(exchanges: Sequence[tuple[str, str]], media: Sequence[str | bytes], **said: Any) -> Entry:
    return Entry({**said, "conversations": conversation_of(exchanges, len(media))}, media)


def _parquet(path: Path, split: str) -> list[Path]:
    """The parquet files of a split by their names (train-00000-of-00004.parquet), or all where no name tells."""
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] * (path.suffix == ".parquet")
    return [file for file in files if file.name.startswith(f"{split}-")] or files


def open_cauldron(path: Path, split: str) -> Converted:
    files = _parquet(path, split)
    source = path.stem if path.is_file() else path.name

    def convert(row: dict[str, Any]) -> Entry:
        exchanges = [(turn["user"], turn["assistant"]) for turn in row["texts"]]
        if not all(isinstance(text, str) for exchange in exchanges for text in exchange):
            raise PumiceError("a turn without a text")
        return _entry(exchanges, [embedded_bytes(image) for image in row["images"] or ()], data_source=source)

    return Converted(ParquetRows(files, ("images", "texts")), convert, None, source)


def open_docvqa(path: Path, split: str) -> Converted:
    files = _parquet(path, split)
    if files:
        return Converted(
            ParquetRows(files, ("question", "answers", "image"), ("questionId",)), _docvqa_row, None, "docvqa"
        )
    found = sorted(path.glob(f"{split}_v1.0*.json"))
    if not found:
        raise PumiceError(f"{path}: neither {split}_v1.0_withQT.json nor parquet in it")

    def convert(row: dict[str, Any]) -> Entry:
        # The archive's pictures lie in documents/, which is what the paths say.
        return _entry([(_asked(row["question"]), _first(row["answers"]))], [row["image"]])

    return Converted(JsonRows(found[-1:], "data"), convert, path.resolve(), "docvqa")


def _docvqa_row(row: dict[str, Any]) -> Entry:
    return _entry([(_asked(row["question"]), _first(row["answers"]))], [embedded_bytes(row["image"])])


def _asked(question: Any) -> str:
    if not isinstance(question, str) or not question.strip():
        raise PumiceError("no question")
    return f"{question.strip()}\n{SHORT_ANSWER}"


def _first(answers: Any) -> str:
    """The first of several right answers; test parts have none."""
    if isinstance(answers, list) and answers and isinstance(answers[0], str) and answers[0].strip():
        return answers[0]
    raise PumiceError("no answer")


def open_chartqa(path: Path, split: str) -> Converted:
    files = _parquet(path, split)
    if files:

        def convert(row: dict[str, Any]) -> Entry:
            label = row["label"]
            answer = _first(label if isinstance(label, list) else [label])
            return _entry([(_asked(row["query"]), answer)], [embedded_bytes(row["image"])])

        return Converted(ParquetRows(files, ("image", "query", "label")), convert, None, "chartqa")
    folder = path / split
    found = sorted(folder.glob(f"{split}_*.json"))
    if not found:
        raise PumiceError(f"{path}: neither {split}/{split}_human.json nor parquet in it")

    def convert_file(row: dict[str, Any]) -> Entry:
        return _entry([(_asked(row["query"]), _first([row["label"]]))], [f"{split}/png/{row['imgname']}"])

    return Converted(JsonRows(found), convert_file, path.resolve(), "chartqa")


class _CordFiles:
    """CORD's archive: json/receipt_00000.json and image/receipt_00000.png."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted((folder / "json").glob("*.json"))
        self.folder = folder

    def __len__(self) -> int:
        return len(self.files)

    def row(self, number: int) -> dict[str, Any]:
        file = self.files[number]
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"ground_truth": json.dumps(found), "image": f"image/{file.stem}.png"}


def open_cord(path: Path, split: str) -> Converted:
    files = _parquet(path, split)
    if files:
        return Converted(ParquetRows(files, ("image", "ground_truth")), _cord_row, None, "cord")
    folder = path / split if (path / split).is_dir() else path
    rows = _CordFiles(folder)
    if not len(rows):
        raise PumiceError(f"{path}: neither {split}/json/*.json nor parquet in it")
    return Converted(rows, _cord_row, folder.resolve(), "cord")


def _cord_row(row: dict[str, Any]) -> Entry:
    truth = json.loads(row["ground_truth"])
    fields = truth["gt_parse"] if "gt_parse" in truth else _cord_fields(truth["valid_line"])
    if not isinstance(fields, dict) or not fields:
        raise PumiceError("no fields")
    image = row["image"] if isinstance(row["image"], str) else embedded_bytes(row["image"])
    return _entry([(CORD_PROMPT, json.dumps(fields, ensure_ascii=False))], [image])


def _cord_fields(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Nested fields of the older form, which labels lines: {"menu": [{"nm", "price"}], "total": {"total_price"}}.

    A category is "menu.nm"; lines of one group_id belong together.
    """
    groups: dict[tuple[str, int], dict[str, str]] = {}
    for line in lines:
        kind, _, name = line["category"].partition(".")
        text = " ".join(word["text"] for word in line["words"])
        group = groups.setdefault((kind, line["group_id"] if kind in ("menu", "void_menu") else 0), {})
        group[name] = f"{group[name]} {text}" if name in group else text
    fields: dict[str, Any] = {}
    for (kind, _), group in groups.items():
        if kind in ("menu", "void_menu"):
            fields.setdefault(kind, []).append(group)
        else:
            fields[kind] = group
    return fields


def open_ureader(path: Path, split: str) -> Converted:
    folder = path / "ureader_json" if (path / "ureader_json").is_dir() else path
    files = sorted(file for file in folder.glob("*.jsonl") if file.name.startswith(split))
    if path.is_file():
        files = [path]
    if not files:
        raise PumiceError(f"{path}: no {split}*.jsonl in it or in its ureader_json/")
    root = path.parent if path.is_file() else path
    media = root / "ureader_images" if (root / "ureader_images").is_dir() else root
    return Converted(JsonRows(files), _ureader_row, media.resolve(), "ureader")


def _ureader_row(row: dict[str, Any]) -> Entry:
    """The picture is a turn of the user by itself there; turns of one side that follow each other become one."""
    image = row["image"]
    media = [image] if isinstance(image, str) else list(image)
    said: list[tuple[str, str]] = []
    for turn in row["conversations"]:
        who, text = turn["from"], turn["value"].strip()
        if who not in ("user", "assistant"):
            raise PumiceError(f"a turn of {who}")
        if text in (MARKER, "<|image|>"):
            continue
        if said and said[-1][0] == who:
            said[-1] = (who, f"{said[-1][1]}\n{text}")
        else:
            said.append((who, text))
    users, answers = said[0::2], said[1::2]
    if len(users) != len(answers) or any(who != "user" for who, _ in users):
        raise PumiceError("user and assistant don't take turns")
    return _entry([(q, a) for (_, q), (_, a) in zip(users, answers, strict=True)], media)


FORMS: dict[str, Callable[[Path, str], Converted]] = {
    "cauldron": open_cauldron,
    "docvqa": open_docvqa,
    "chartqa": open_chartqa,
    "cord": open_cord,
    "ureader": open_ureader,
}
"""Converters by the name of the form in `sets.toml`: (the set's folder, its part) to entries."""
