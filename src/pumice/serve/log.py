"""Lines of JSON on standard error: what was asked when by whom, never what it said."""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO


class Log:
    """Writes a line at once and whole."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out

    def write(self, event: str, **fields: Any) -> None:
        """One line; ``fields`` hold no text of a request."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        out = self.out or sys.stderr
        out.write(json.dumps(line) + "\n")
        out.flush()

    def request(self, **fields: Any) -> None:
        """The line of one request."""
        self.write("request", **fields)

    def failure(self, request: str, error: BaseException) -> None:
        """A failure of the server's own: where, without the error's text, which may quote a request."""
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames]
        more = {"text": str(error)} if os.environ.get("PUMICE_DEBUG") == "1" else {}
        self.write("failure", id=request, type=type(error).__name__, where=where, **more)


def take_over(log: Log) -> None:
    """Let what uvicorn and the engine log come as lines of JSON, without the texts of errors."""
    for name in ("uvicorn", "pumice"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [LogHandler(log)], False


class LogHandler(logging.Handler):
    """Takes what libraries log, such as uvicorn; their warnings alone."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        """One line. An exception's text is left out."""
        kind = type(record.exc_info[1]).__name__ if record.exc_info and record.exc_info[1] else None
        self.log.write("library", logger=record.name, level=record.levelname, text=str(record.msg)[:200], type=kind)
