"""The conversation of ``pumice chat``: questions from the terminal or a pipe, answers as they are made.

line ──> /command, or a question ──history──> Assistant.chat(stream) ──> pieces on stdout ──> history
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pumice.types import PumiceError

if TYPE_CHECKING:
    from PIL import Image

    from pumice.assistant import Assistant

HELP = """/reset  forget the conversation, keep the pictures
/quit   leave (also Ctrl-D)
/help   this list
Ctrl-C stops an answer, or leaves when nothing is being answered."""

Message = dict[str, Any]


def converse(assistant: Assistant, pictures: list[Image.Image], max_tokens: int) -> int:
    """Answer lines of standard input until it ends or says /quit. Returns the exit code."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (gives input() line editing and history)

        prompt = "> "
        print("Ask about the pictures. /help lists the commands.", file=sys.stderr)
    history: list[Message] = []
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            _leave(prompt)
            return 0
        except KeyboardInterrupt:
            _leave(prompt)
            raise
        if line == "/quit":
            return 0
        if line == "/reset":
            history = []
        elif line.startswith("/"):
            print(HELP if line == "/help" else f"unknown command {line}\n{HELP}", file=sys.stderr)
        elif line:
            history = _turn(assistant, pictures, history, line, max_tokens)


def _leave(prompt: str) -> None:
    """End the prompt's line, so that the shell's own prompt starts on a new one."""
    if prompt:
        print()


def _turn(
    assistant: Assistant, pictures: list[Image.Image], history: list[Message], line: str, max_tokens: int
) -> list[Message]:
    """Ask one question and print its answer. Returns the new history; the old one if no answer was finished."""
    content: list[Message] = [{"type": "text", "text": line}]
    if not history:
        content = [*({"type": "image", "image": picture} for picture in pictures), *content]
    asked = [*history, {"role": "user", "content": content}]
    said = ""
    try:
        for piece in assistant.chat(asked, stream=True, max_tokens=max_tokens):
            if isinstance(piece, str):
                said += piece
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print("\nstopped; this question is forgotten", file=sys.stderr)
        return history
    except PumiceError as error:  # such as a conversation that has grown too long: /reset helps
        print(f"pumice: {error}", file=sys.stderr)
        return history
    return [*asked, {"role": "assistant", "content": said}]
