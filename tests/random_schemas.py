"""JSON schemas drawn by chance, and texts that a grammar allows."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
from llguidance import LLMatcher

_NAMES = ["city", "days", "a b", 'q"', "é", "n", "tags", "where", "</tool_call>"]
_VALUES = ["<|im_end|>", "b", 1, None, True, '"', "[TOOL_CALLS]"]
_CLOSERS = frozenset(b'"]},')


def random_object(chance: Random, depth: int = 2) -> dict[str, Any]:
    """A schema of objects, as tools have for their arguments."""
    names = chance.sample(_NAMES, chance.randint(0, 4))
    schema: dict[str, Any] = {"type": "object", "properties": {name: _random(chance, depth) for name in names}}
    if chance.random() < 0.8:
        schema["required"] = chance.sample(names, chance.randint(0, len(names)))
    if chance.random() < 0.3:
        schema["additionalProperties"] = chance.choice([False, {"type": "integer", "minimum": 0, "maximum": 9}])
    if names and depth == 2 and chance.random() < 0.2:  # references are from the root
        schema["$defs"] = {"d": _random(chance, 0)}
        schema["properties"][names[0]] = {"$ref": "#/$defs/d"}
    return schema


def _random(chance: Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "integer", "number", "boolean", "null", "enum", "bounded", "pattern"]
    match chance.choice([*kinds, *(["object", "array", "anyOf", "nullable"] if depth else [])]):
        case "object":
            return random_object(chance, depth - 1)
        case "array":
            return {"type": "array", "items": _random(chance, depth - 1), "maxItems": chance.randint(0, 3)}
        case "anyOf":
            return {"anyOf": [_random(chance, depth - 1) for _ in range(chance.randint(1, 3))]}
        case "nullable":
            return {"type": ["string", "null"]}
        case "enum":
            return {"enum": chance.sample(_VALUES, chance.randint(1, 4))}
        case "bounded":
            return {"type": "string", "minLength": chance.randint(0, 3), "maxLength": chance.randint(3, 9)}
        case "pattern":
            return {"type": "string", "pattern": "^[A-F]{2}-[0-9]{1,3}$"}
        case "integer":
            return {"type": "integer", "minimum": -chance.randint(0, 99), "maximum": chance.randint(0, 999)}
        case "number":
            return {"type": "number", "minimum": -9, "maximum": 9}  # 1e999 is one, and more than a double holds
        case kind:
            return {"type": kind}


def sampled(matcher: LLMatcher, chance: Random, end: int, tokens: int = 20_000) -> list[int]:
    """Tokens that a grammar allows, of a vocabulary of bytes. What closes a string or an object comes often."""
    ids: list[int] = []
    while len(ids) < tokens:
        mask = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.flatnonzero(np.unpackbits(mask, bitorder="little")).tolist()
        if end in allowed and (len(allowed) == 1 or chance.random() < 0.7):
            return ids
        allowed = [token for token in allowed if token != end]
        closing = [token for token in allowed if token in _CLOSERS]
        token = chance.choice(closing if closing and chance.random() < 0.3 else allowed)
        assert matcher.consume_token(token), matcher.get_error()
        ids.append(token)
    raise AssertionError("the text does not end")
