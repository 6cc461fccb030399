"""TOML tables, merged and then read strictly into dataclasses; and written again.

    file ──base = "other.toml"──> merged tables + where each value was written ──Reader──> dataclasses ──write──> TOML

The annotations of the dataclasses are the schema: types, `Range` of a number, `Keys` of a table of numbers.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from pumice.types import PumiceError

Key = tuple[str, ...]
Origins = dict[Key, str]
"""Where each value was written: a file, or an override."""


class Range(NamedTuple):
    """Limits of a number, both included; with ``above`` the lower one is not."""

    low: float
    high: float = math.inf
    above: bool = False

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'of at least'} {self.low:g}"
        return least if self.high == math.inf else f"{least} and at most {self.high:g}"

    def holds(self, value: float) -> bool:
        """Whether a number is finite and within the limits."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)


class Keys(NamedTuple):
    """The keys that a table may have."""

    names: tuple[str, ...]


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Rate = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]


def read(path: Path, above: tuple[Path, ...], origins: Origins) -> dict[str, Any]:
    """The file's tables merged into its bases'."""
    path = path.resolve()
    if path in above:
        chain = " -> ".join(p.name for p in (*above, path))
        raise PumiceError(f"{path}: recipes that are each other's base: {chain}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        beside = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) or "no .toml file"
        raise PumiceError(f"{path}: {error.strerror}; {path.parent} has {beside}") from error
    except ValueError as error:
        raise PumiceError(f"{path}: not TOML: {error}") from error
    base = data.pop("base", None)
    if base is None:
        merged: dict[str, Any] = {}
    elif isinstance(base, str):
        merged = read(path.parent / base, (*above, path), origins)
        merged.pop("name", None)  # or two runs would share a name without anyone saying so
    else:
        raise PumiceError(f"{path}: base = {base!r}; expected the name of a recipe file")
    _merge(merged, data, (), str(path), origins)
    return merged


def _merge(into: dict[str, Any], data: dict[str, Any], key: Key, source: str, origins: Origins) -> None:
    """Write ``data`` over ``into``, table by table."""
    for name, value in data.items():
        here, old = (*key, name), into.get(name)
        origins[here] = source
        if isinstance(value, dict):
            if not isinstance(old, dict):
                into[name] = old = {}
            _merge(old, value, here, source, origins)
        elif value is False and isinstance(old, dict):
            del into[name]
        else:
            into[name] = value


def override(data: dict[str, Any], text: str, origins: Origins) -> None:
    """Write one ``dotted.key=value`` over the data."""
    dotted, equals, written = text.partition("=")
    names = [name.strip() for name in dotted.split(".")]
    if not equals or not all(names):
        raise PumiceError(f"override {text!r}; expected key=value, such as stages.read.steps=10")
    stages = data.get("stages", {})
    if names[0] == "stages" and len(names) > 1 and isinstance(stages, dict) and names[1] not in stages:
        raise PumiceError(f"override {text!r}: no stage {names[1]!r}; the recipe has {', '.join(stages)}")
    try:
        parsed = tomllib.loads(f"value = {written}")
    except tomllib.TOMLDecodeError as error:
        if not re.fullmatch(r"\s*[\w.~/:+-]+\s*", written):
            raise PumiceError(f"override {text!r}: the value isn't TOML: {error}") from error
        parsed = {"value": written.strip()}
    nested: Any = parsed["value"]
    for name in reversed(names):
        nested = {name: nested}
    _merge(data, nested, (), f"override {text!r}", origins)


class Reader:
    """Builds the dataclasses from merged data; every error names where the value was written and its full key."""

    def __init__(self, file: str, origins: Origins) -> None:
        self.file, self.origins = file, origins

    def error(self, key: Key, message: str) -> PumiceError:
        """An error about a key, which may be missing: then its nearest table above says where."""
        source = next((self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins), self.file)
        return PumiceError(f"{source}: {'.'.join(key)}: {message}")

    def known(self, data: dict[str, Any], names: Sequence[str], key: Key) -> None:
        for name in data:
            if name not in names:
                near = get_close_matches(name, names, 1, 0.0)[0]
                raise self.error((*key, name), f"unknown key; the nearest is {near!r} (known: {', '.join(names)})")

    def build(self, kind: Any, data: dict[str, Any], key: Key) -> Any:
        """The dataclass ``kind`` from a table."""
        hints = get_type_hints(kind, include_extras=True)
        self.known(data, list(hints), key)
        for f in fields(kind):
            if f.name not in data and f.default is MISSING and f.default_factory is MISSING:
                raise self.error((*key, f.name), "missing")
        return kind(**{name: self.value(hints[name], data[name], (*key, name)) for name in hints if name in data})

    def value(self, hint: Any, value: Any, key: Key, extra: Any = None) -> Any:
        """A value of the annotated type, or an error with what was expected and what was found."""
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            return self.value(args[0], value, key, args[1])
        if origin in (Union, UnionType):
            return self.value(args[0], value, key)
        if is_dataclass(hint) or origin is dict:
            if not isinstance(value, dict):
                raise self.error(key, f"expected a table, found {shown(value)}")
            if origin is dict:
                self.known(value, extra.names, key)
                # In the order of the known names, so that the order in a file doesn't change the digest.
                return {k: self.value(args[1], value[k], (*key, k)) for k in extra.names if k in value}
            return self.build(hint, value, key)
        if origin is tuple and args[-1] is Ellipsis:
            if not isinstance(value, list):
                raise self.error(key, f"expected a list, found {shown(value)}")
            return tuple(self.value(args[0], part, key) for part in value)
        if origin is tuple:
            if not isinstance(value, list) or len(value) != len(args):
                raise self.error(key, f"expected a list of {len(args)}, found {shown(value)}")
            return tuple(self.value(arg, part, key) for arg, part in zip(args, value, strict=True))
        if origin is Literal:
            if value not in args:
                raise self.error(key, f"expected one of {', '.join(args)}, found {shown(value)}")
            return value
        return self.scalar(hint, value, key, extra)

    def scalar(self, hint: type, value: Any, key: Key, limits: Range | None) -> Any:
        """A string or a number within its limits; an integer may stand for a float."""
        if hint is float and type(value) is int:
            value = float(value)
        name = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}[hint]
        if type(value) is not hint or (limits and not limits.holds(value)):
            raise self.error(key, f"expected {name}{f' {limits}' if limits else ''}, found {shown(value)}")
        if value == "":
            raise self.error(key, "expected a string that isn't empty")
        return value


def shown(value: Any) -> str:
    """A value as TOML would say it, short, with its type."""
    name = {str: "string", bool: "boolean", dict: "table", list: "list"}.get(type(value), type(value).__name__)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return f"{name} {text[:60]}"


def write(table: dict[str, Any], key: Key, lines: list[str]) -> None:
    """A table's own values first, as TOML wants it, then the tables inside."""
    if key and not all(isinstance(value, dict) for value in table.values()):
        lines.append(f"\n[{'.'.join(key)}]")
    lines += [f"{name} = {_toml(value)}" for name, value in table.items() if not isinstance(value, dict)]
    for name, value in table.items():
        if isinstance(value, dict):
            write(value, (*key, name), lines)


def _toml(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_toml(part) for part in value)}]"
    if isinstance(value, str):
        # JSON's strings are TOML's, but for the one control character that JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)
