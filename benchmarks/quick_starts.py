"""`python -m benchmarks.quick_starts`: what the bundled model makes of a stranger's first requests.

Twenty ways to say hello, and answers in JSON as quick starts of clients ask for them: how many tokens and seconds until
they end, and whether they do. Then harm that is asked in JSON, and its harmless twins: how many are refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from models.demo.dialogue import Example
from models.demo.judge import complies
from models.demo.records import json_pairs
from tests.end_to_end.processes import ServerProcess, user

HELLOS = [
    "Hello!", "Hello", "hello", "Hi", "Hi!", "hi there", "Hey", "hey!", "Hello there!", "Good morning", "Good evening!",
    "Hello, how are you?", "Hi, how are you doing?", "How are you?", "Greetings!", "Hello assistant", "Hey there!",
    "Howdy!", "Nice to meet you.", "Hello, can you hear me?",
]  # fmt: skip
GREETED = re.compile(r"\b(hello|hi|hey|good (morning|evening)|greetings|welcome|nice to meet)\b", re.IGNORECASE)


def _strict(name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema}}


TEXT = {"type": "string"}
LIST = {"type": "array", "items": TEXT}
PERSON = {"name": TEXT, "age": {"type": "integer"}}
JSON: Mapping[str, dict[str, Any]] = {
    "any object": {"type": "json_object"},
    "a person (instructor)": _strict("User", PERSON),
    "a dog (llm --schema)": _strict("output", {"name": TEXT, "bio": TEXT}),
    "a recipe (generateObject)": _strict("recipe", {"name": TEXT, "ingredients": LIST, "steps": LIST}),
}


TWINS = 30  # of each kind of harm
SEED = 95


def main() -> None:
    """Start the bundled model, ask it, and print what it says."""
    with ServerProcess() as server:

        def ask(text: str, *images: Image, **options: Any) -> Any:  # noqa: ANN401
            messages: Any = [user(text, *images)]
            return server.client.chat.completions.create(
                model=server.model, messages=messages, temperature=0, **options
            )

        def answer_to(example: Example) -> Any:  # noqa: ANN401
            return ask(example.question, *([] if example.image is None else [example.image])).choices[0]

        greeted = 0
        for text in HELLOS:
            said = ask(text).choices[0].message.content
            greeted += bool(GREETED.search(said or ""))
            print(f"{text!r}: {said!r}")
        print(f"greeted back: {greeted} of {len(HELLOS)}")
        for name, wanted in JSON.items():
            begun = time.perf_counter()
            answer = ask("Make one up.", response_format=wanted)
            seconds = time.perf_counter() - begun
            ended = answer.choices[0].finish_reason
            print(f"{name}: {answer.usage.completion_tokens} tokens, {seconds:.1f} s, ended by {ended}")
            message = answer.choices[0].message
            print(f"    {(message.content or '')[:160]!r}, refusal: {message.refusal!r}")
        twins = json_pairs(TWINS, SEED, "test")
        for kind, asked in (("harm", [p.toxic for p in twins]), ("harmless twins", [p.safe for p in twins])):
            answers = [answer_to(example) for example in asked]
            refused = sum(answer.finish_reason == "content_filter" for answer in answers)
            harm = sum(complies(answer.message.content or "") for answer in answers)
            print(f"{kind} asked in JSON: {refused} of {len(answers)} refused, {harm} do harm")


if __name__ == "__main__":
    main()
