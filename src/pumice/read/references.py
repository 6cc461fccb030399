"""What a place in a JSON schema means: references followed, "or null" taken out.

{"anyOf": [{"$ref": "#/$defs/shop"}, {"type": "null"}]} ──resolve──> ({"type": "object", ...}, null is allowed)
"""

from __future__ import annotations

from typing import Any

DEEP = 8
"""Objects inside objects whose fields are asked for one by one."""
UNITED = ("anyOf", "oneOf", "allOf")


def resolve(schema: Any, root: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """(schema, whether null is allowed) with references into the same file followed and "or null" taken out."""
    found, null = schema if isinstance(schema, dict) else {}, False
    for _ in range(2 * DEEP):
        inner = None
        if isinstance(found.get("$ref"), str):
            key, inner = "$ref", _referred(found["$ref"], root)
        else:
            key = next((key for key in UNITED if isinstance(found.get(key), list)), "")
            some = [one for one in found.get(key, ()) if not (isinstance(one, dict) and one.get("type") == "null")]
            if len(some) == 1 and isinstance(some[0], dict):
                inner, null = some[0], null or len(some) < len(found[key])
        if inner is None:
            break
        found = inner | {name: value for name, value in found.items() if name != key}  # what stands beside it wins
    kind = found.get("type")
    if isinstance(kind, list) and "null" in kind:
        kinds = [one for one in kind if one != "null"]
        found, null = found | {"type": kinds[0] if len(kinds) == 1 else kinds}, True
    if isinstance(found.get("enum"), list) and None in found["enum"]:
        found, null = found | {"enum": [value for value in found["enum"] if value is not None]}, True
    return found, null


def _referred(reference: str, root: dict[str, Any]) -> dict[str, Any] | None:
    """What "#/$defs/shop" means; None for what isn't in the file."""
    found: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found if isinstance(found, dict) and reference.startswith("#") else None
