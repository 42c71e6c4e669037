"""Schemas are compiled where it can be ended: what is too dear is refused in time, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from models.grammar import plain_json
from models.schema import SchemaError, source_of
from server.errors import TooManyRequests, Unavailable
from server.request import QUICK_SECONDS
from server.workers import schemas
from server.workers.schemas import SchemaCompiler, VocabularySource
from tests.living import living
from tests.server.scripted import EOS, byte_tokenizer
from tests.waiting import WAIT_SECONDS, wait_until

BYTES = VocabularySource(plain_json(byte_tokenizer()), 258, {EOS})
SMALL = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def multiples(*numbers: int, title: str = "") -> dict[str, Any]:
    """Each number alone is fine, and no reference is followed before it is compiled: what costs is their product."""
    return {
        "$defs": {str(number): {"multipleOf": number} for number in numbers},
        "type": "integer",
        "allOf": [{"$ref": f"#/$defs/{number}"} for number in numbers],
        "title": title,
    }


DEAR = multiples(97, 89, 5)  # many times QUICK_SECONDS
ENDLESS = multiples(97, 89, 83)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def compiler() -> AsyncIterator[SchemaCompiler]:
    compiler = SchemaCompiler(BYTES, seconds=0.3, memory_bytes=2**27)
    yield compiler
    compiler.close()


def process_of(compiler: SchemaCompiler) -> psutil.Process:
    """The one that all schemas are compiled in copies of."""
    worker = compiler._process._worker
    assert worker is not None
    return psutil.Process(worker.pid)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_small_schema_is_fine_and_quick(compiler: SchemaCompiler) -> None:
    found = await compiler.check(SMALL)
    assert found.quick
    assert await compiler.check(SMALL) == found


@pytest.mark.asyncio(loop_scope="module")
async def test_the_engine_gets_what_was_compiled_and_does_not_make_it_again(compiler: SchemaCompiler) -> None:
    assert (await compiler.check(SMALL)).source == source_of(SMALL)
    assert (await compiler.check(SMALL)).source == source_of(SMALL)  # of a verdict that is remembered too


@pytest.mark.asyncio(loop_scope="module")
async def test_what_takes_longer_is_told_to_be_dear(compiler: SchemaCompiler) -> None:
    generous = SchemaCompiler(BYTES, seconds=20, memory_bytes=2**27)
    try:
        found = await generous.check(DEAR)
    finally:
        generous.close()
    assert found.seconds > QUICK_SECONDS
    assert not found.quick


@pytest.mark.asyncio(loop_scope="module")
async def test_a_schema_is_refused_for_the_library_s_reason(compiler: SchemaCompiler) -> None:
    for _ in range(2):
        with pytest.raises(SchemaError, match="Unsatisfiable"):
            await compiler.check({"enum": []})


@pytest.mark.asyncio(loop_scope="module")
async def test_what_no_bound_foresees_is_ended_in_time_and_remembered(
    compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SchemaError, match=r"more than 0\.3 s of computing \(schema_seconds\)"):
        await compiler.check(ENDLESS)
    monkeypatch.setattr(compiler, "_compile", None)
    with pytest.raises(SchemaError, match="schema_seconds"):
        await compiler.check(ENDLESS)


@pytest.mark.asyncio(loop_scope="module")
async def test_many_who_ask_for_one_schema_have_it_compiled_once(
    compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    compile_one = compiler._compile

    async def counted(lane: int, *rest: Any) -> Any:
        asked.append(lane)
        return await compile_one(lane, *rest)

    monkeypatch.setattr(compiler, "_compile", counted)
    found = await asyncio.gather(*(compiler.check({**SMALL, "title": "once"}) for _ in range(20)))
    assert len(set(found)) == 1
    assert asked == [0]


@pytest.mark.asyncio(loop_scope="module")
async def test_quick_schemas_do_not_wait_for_dear_ones(compiler: SchemaCompiler) -> None:
    order: list[str] = []

    async def ask(name: str, schema: dict[str, Any]) -> None:
        with suppress(SchemaError):
            await compiler.check(schema)
        order.append(name)

    await compiler.check({**SMALL, "title": "started"})
    dear = [asyncio.create_task(ask("dear", multiples(97, 89, 83, title=str(number)))) for number in range(3)]
    await asyncio.gather(*(ask("small", {**SMALL, "title": str(number)}) for number in range(5)), *dear)
    assert order[-1] == "dear"  # where each waits for those before it, a small one is the last


@pytest.mark.asyncio(loop_scope="module")
async def test_only_so_many_dear_ones_of_a_client_wait_and_another_waits_for_one_of_them(
    compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schemas, "MAX_DEAR", 2)
    order: list[tuple[str, type]] = []

    async def ask(client: str, number: int) -> None:
        with pytest.raises((SchemaError, TooManyRequests)) as refused:
            await compiler.check(multiples(97, 89, 83, title=str(number)), client)
        order.append((client, refused.type))

    await asyncio.gather(*(ask("attacker", number) for number in range(10, 16)), ask("other", 16))
    kinds = {client: {kind for who, kind in order if who == client} for client in ("attacker", "other")}
    assert kinds == {"attacker": {SchemaError, TooManyRequests}, "other": {SchemaError}}
    assert order[-1][0] == "attacker"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system bounds no address space")
async def test_memory_is_bounded() -> None:
    tight = SchemaCompiler(BYTES, seconds=20, memory_bytes=2**20)
    try:
        with pytest.raises(SchemaError, match=r"more than 1 MiB \(schema_mib\)"):
            await tight.check({"enum": [f"{'x' * 10}{number}" for number in range(3000)]})
    finally:
        tight.close()


@pytest.mark.chance
def test_a_compile_ends_with_a_killed_server() -> None:
    """Whatever the limit of its time is."""
    program = (
        "import asyncio\nfrom tests.server.workers.test_schemas import BYTES, ENDLESS, SMALL\n"
        "from server.workers.schemas import SchemaCompiler\n"
        "async def main():\n"
        "    compiler = SchemaCompiler(BYTES, seconds=3600, memory_bytes=2**30)\n"
        "    await compiler.check(SMALL)\n"
        "    print('started', flush=True)\n"
        "    await compiler.check(ENDLESS)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "started\n"
        process = psutil.Process(server.pid)

        def computing() -> list[psutil.Process]:
            """A copy that compiles for longer than the first lane lets it."""
            workers = process.children()
            return living(
                process.children(recursive=True),
                lambda each: each not in workers and sum(each.cpu_times()[:2]) > 2 * QUICK_SECONDS,
            )

        wait_until(computing, "the schema to be compiled in the second lane")
        started = process.children(recursive=True)
        computing()[0].suspend()  # so that it does not end by itself
        server.kill()
        _, alive = psutil.wait_procs(started, timeout=WAIT_SECONDS)
        for each in alive:
            each.kill()
    assert not alive


@pytest.mark.asyncio(loop_scope="module")
async def test_a_process_that_gives_no_answer_is_replaced_and_blames_no_schema(
    compiler: SchemaCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    await compiler.check({**SMALL, "title": "before"})
    process = process_of(compiler)
    process.suspend()
    monkeypatch.setattr(schemas, "GRACE_SECONDS", 0.05)
    with pytest.raises(Unavailable):
        await compiler.check({**SMALL, "title": "again"})
    assert not psutil.pid_exists(process.pid)
    monkeypatch.undo()
    await compiler.check({**SMALL, "title": "again"})


@pytest.mark.asyncio(loop_scope="module")
async def test_the_process_is_modest_and_ends_with_its_compiler() -> None:
    compiler = SchemaCompiler(BYTES, seconds=1, memory_bytes=2**27)
    compiler.start()
    await compiler.check(SMALL)
    process = process_of(compiler)
    assert process.nice() > psutil.Process().nice()
    compiler.close()
    assert not psutil.pid_exists(process.pid)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_tokenizer_that_no_grammar_can_be_made_over() -> None:
    compiler = SchemaCompiler(VocabularySource("{}", 258, {EOS}), seconds=1, memory_bytes=2**27)
    try:
        with pytest.raises(SchemaError, match="this model's tokenizer"):
            await compiler.check(SMALL)
    finally:
        compiler.close()
