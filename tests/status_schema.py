"""Checks a value against the part of JSON Schema that status.schema.json uses; an unknown keyword is an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = json.loads((Path(__file__).parent.parent / "zk0d/ctl/status.schema.json").read_text())

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_KNOWN = {"$schema", "title", "description", "type", "additionalProperties", "required", "properties", "items",
          "enum", "const"}  # fmt: skip


def check(value: Any, schema: dict[str, Any] = SCHEMA, where: str = "status") -> None:
    """AssertionError naming the place that is not as the schema says."""
    assert set(schema) <= _KNOWN, f"{where}: the checker does not know {set(schema) - _KNOWN}"
    if "const" in schema:
        assert value == schema["const"], f"{where}: {value!r}"
    if "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        fits = any(isinstance(value, _TYPES[n]) and (n == "boolean" or not isinstance(value, bool)) for n in names)
        assert fits, f"{where}: {value!r} is not {names}"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", [])) <= set(value), f"{where}: lacks {set(schema['required']) - set(value)}"
        if schema.get("additionalProperties") is False:
            assert set(value) <= set(properties), f"{where}: has {set(value) - set(properties)} beyond the schema"
        for key, inner in properties.items():
            if key in value:
                check(value[key], inner, f"{where}.{key}")
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            check(item, schema["items"], f"{where}[{number}]")
