"""JSON schemas: as applications have them, and such that cost more than they show."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]
PATTERNS = (r"^\d{4}-\d{2}$", "^[a-z]+(-[a-z]+){0,5}$", "[A-F0-9]{32}")


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """A schema as an application might have it."""
    kinds = ["string", "integer", "number", "boolean", "enum", "pattern"] + ["object", "array", "anyOf"] * (depth > 0)
    match rng.choice(kinds):
        case "object":
            names = [f"field_{number}" for number in range(rng.randint(1, 8))]
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": rng.sample(names, rng.randint(0, len(names))),
                "additionalProperties": rng.random() < 0.2,
            }
        case "array":
            return {"type": "array", "items": random_schema(rng, depth - 1), "maxItems": rng.randint(1, 50)}
        case "anyOf":
            return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
        case "enum":
            return {"enum": [f"value {rng.randint(0, 999)}" for _ in range(rng.randint(1, 30))]}
        case "pattern":
            return {
                "type": "string",
                "pattern": rng.choice(PATTERNS),
            }
        case "string":
            return {"type": "string", "minLength": rng.randint(0, 5), "maxLength": rng.randint(5, 500)}
        case "integer":
            return {"type": "integer", "minimum": rng.randint(-1000, 0), "maximum": rng.randint(1, 10**9)}
        case kind:
            return {"type": kind}


def multiples(*numbers: int) -> Schema:
    """What costs is the product of the numbers, which no part of it shows."""
    return {
        "$defs": {str(number): {"multipleOf": number} for number in numbers},
        "type": "integer",
        "allOf": [{"$ref": f"#/$defs/{number}"} for number in numbers],
    }


def nested(depth: int) -> Schema:
    """Twice as many alternatives at each level."""
    schema: Schema = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema, {"type": "array", "items": schema}]}
    return schema


def chained(key: str, links: int, width: int) -> Schema:
    """References that multiply along a chain."""
    defs = {f"d{link}": {key: [{"$ref": f"#/$defs/d{link + 1}"}] * width} for link in range(links)}
    return {"$defs": {**defs, f"d{links}": {"type": "object"}}, "allOf": [{"$ref": "#/$defs/d0"}]}


def _hostile(number: int) -> list[Schema]:
    """A dozen kinds, sharper with each number."""
    letters = "abcdefghijklmnop"[: 8 + number]
    primes = (2, 3, 5, 7, 11, 13, 17, 19, 23)[: 5 + number]
    return [
        multiples(97, 89, 83 + number),
        multiples(31, 37, 41, 43 + number),
        {"type": "integer", "multipleOf": 9_999_991 - number},
        {"type": "integer", "multipleOf": 9_973 - number, "minimum": 0, "maximum": 10**18},
        {"type": "object", "properties": {f"p{name}": {} for name in range(300 + 500 * number)}},
        {"type": "string", "pattern": f"^(a{{{40 + number}}}){{{40 + number}}}$"},
        {"type": "string", "pattern": f"^(([ab]{{1,20}}c?){{1,20}}d?){{1,{15 + number}}}$"},
        {"allOf": [{"type": "string", "pattern": f".*{each}.*{each}.*{each}.*"} for each in letters]},
        {"allOf": [{"type": "string", "pattern": f"^(..{{{prime}}})*$"} for prime in primes]},
        {"enum": [f"{'x' * 9}{name}" for name in range(2000 + 1000 * number)]},
        nested(7 + number),
        chained("anyOf", 6 + number, 10) if number % 2 else chained("allOf", 20 + number, 2),
    ]


def hostile_schemas() -> list[Schema]:
    """Sixty that cost more than they show."""
    return [schema for number in range(5) for schema in _hostile(number)]
