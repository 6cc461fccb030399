"""API keys: only their SHA-256 is stored, and each has its own limits.

Authorization: Bearer pm-... ──Keys.find──> Caller ──enter──> counted, or 429

A key has 256 random bits, so that a plain hash can't be searched. The file is TOML, a table ``[[key]]`` for each.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pumice.serve.errors import ApiError
from pumice.types import PumiceError

FIELDS = {"name": str, "sha256": str, "requests_per_minute": int, "concurrent": int}


@dataclass
class Caller:
    """Who asks. ``space`` tells apart what is cached for different keys; a limit of 0 is none."""

    name: str = ""
    sha256: str = ""
    requests_per_minute: int = 0
    concurrent: int = 0
    clock: Callable[[], float] = time.monotonic
    running: int = 0
    _allowance: float = field(default=-1.0, repr=False)
    _seen: float = field(default=0.0, repr=False)

    @property
    def space(self) -> str:
        return self.sha256

    def count(self) -> None:
        """Take one request from the minute's allowance, which refills steadily.

        Raises:
            ApiError: 429, nothing is left; it says when there will be.
        """
        if not self.requests_per_minute:
            return
        now, rate = self.clock(), self.requests_per_minute / 60
        full = float(self.requests_per_minute)
        left = full if self._allowance < 0 else min(full, self._allowance + (now - self._seen) * rate)
        self._seen, self._allowance = now, left
        if left < 1:
            wait = (1 - left) / rate
            raise ApiError(
                429,
                "rate_limit_exceeded",
                f"this key may ask {self.requests_per_minute} times a minute; try again in {math.ceil(wait)} seconds",
                retry_after=wait,
            )
        self._allowance = left - 1

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """One request at work.

        Raises:
            ApiError: 429, as many as the key may have are at work.
        """
        if self.concurrent and self.running >= self.concurrent:
            raise ApiError(
                429,
                "too_many_concurrent",
                f"this key may have {self.concurrent} requests at work at once; wait for one to end",
                retry_after=1,
            )
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1


class Keys:
    """All callers; without any, everybody is the one without a name."""

    def __init__(self, callers: list[Caller]) -> None:
        self.callers = callers
        self.anyone = Caller()

    def find(self, header: str | None) -> Caller:
        """The caller of an Authorization header.

        Raises:
            ApiError: 401, no key or an unknown one.
        """
        if not self.callers:
            return self.anyone
        scheme, _, key = (header or "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).hexdigest()
        found = None
        for caller in self.callers:  # all of them, so that the time says nothing
            if hmac.compare_digest(caller.sha256, digest):
                found = caller
        if found is None or scheme.lower() != "bearer":
            known = "an unknown API key" if header else "no API key"
            raise ApiError(401, "invalid_api_key", f"{known}; expected the header Authorization: Bearer KEY")
        return found


def read_keys(path: Path) -> Keys:
    """Keys of a file.

    Raises:
        PumiceError: it can't be read, or a key isn't well formed.
    """
    callers = _callers(path)
    if not callers:
        raise PumiceError(f"{path}: no key; pumice serve --new-key NAME --api-keys {path} makes one")
    return Keys(callers)


def _callers(path: Path) -> list[Caller]:
    try:
        tables = tomllib.loads(path.read_text("utf-8")).get("key", [])
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PumiceError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a file of API keys") from None
    if not isinstance(tables, list):
        raise PumiceError(f"{path}: no key, but key = {tables!r}; expected tables [[key]]")
    return [_caller(table, f"{path}: key {number}") for number, table in enumerate(tables, 1)]


def _caller(table: Any, where: str) -> Caller:
    if not isinstance(table, dict):
        raise PumiceError(f"{where}: expected a table [[key]]")
    for name, value in table.items():
        if type(value) is not FIELDS.get(name):
            raise PumiceError(f"{where}: {name} = {value!r}; expected {', '.join(FIELDS)}, the last two whole numbers")
        if isinstance(value, int) and value < 0:
            raise PumiceError(f"{where}: {name} = {value}; expected 0 (no limit) or more")
    if not re.fullmatch("[0-9a-f]{64}", table.get("sha256", "")):
        raise PumiceError(f"{where}: sha256 isn't 64 hexadecimal digits; keys themselves don't belong into this file")
    return Caller(**table)


def new_key(path: Path, name: str) -> str:
    """Make a key and append its hash to the file, which only its owner can read. Returns the key; nothing keeps it.

    Raises:
        PumiceError: the name has other characters than letters, digits, ``.``, ``_`` and ``-``, or the file has it.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise PumiceError(f"--new-key {name!r}: expected up to 64 letters, digits, dots, underscores and hyphens")
    if path.exists() and any(caller.name == name for caller in _callers(path)):
        raise PumiceError(f"{path}: there is a key {name!r} already; choose another name, or delete its table")
    key = "pm-" + secrets.token_urlsafe(32)
    text = f'[[key]]\nname = "{name}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "a+", encoding="utf-8") as file:
        file.seek(0)
        before = file.read()
        file.write("\n" if before and not before.endswith("\n") else "")
        file.write(text + "requests_per_minute = 0  # 0: no limit\nconcurrent = 0\n\n")
    return key
