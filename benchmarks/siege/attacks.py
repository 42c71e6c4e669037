"""What attackers send: each attack is one or two requests, or some sockets, that once stopped a server or opened it.

None costs an attacker more than a few megabytes. What must not happen is told by what becomes of others; what must
happen to the attacker itself is `Attack.expected`.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from benchmarks.attacks.bodies import withheld_bodies
from benchmarks.attacks.images import chat_of, one_colour
from benchmarks.attacks.schemas import Schema, hostile_schemas
from server.settings.units import MEBI

SILENCE_SECONDS = 60.0  # after which a server is said not to answer
HOLD_SECONDS = 5.0  # for which sockets are held that send nothing
READ_BYTES = 2**16
CUT = b"polic"  # a config file of which the rest is lost
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


@dataclass(frozen=True)
class Target:
    """The server that is attacked: where it is, the attackers' keys by policy, and what its operator may do."""

    host: str
    port: int
    model: str
    keys: Mapping[str, str]
    config: Path
    pid: int
    reloads: asyncio.Lock = field(default_factory=asyncio.Lock)

    def request(self, body: bytes, path: str = CHAT, key: str | None = "default", head: str = "") -> bytes:
        """A whole request with a body, and the key of a policy or none."""
        length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        return self._head(f"POST {path}", key, head + length) + body

    def get(self, path: str, key: str | None = "console", head: str = "") -> bytes:
        """A whole request without a body."""
        return self._head(f"GET {path}", key, head)

    def _head(self, wanted: str, key: str | None, fields: str) -> bytes:
        authorization = f"authorization: Bearer {self.keys[key]}\r\n" if key is not None else ""
        head = f"{wanted} HTTP/1.1\r\nhost: {self.host}\r\nconnection: close\r\n{authorization}{fields}\r\n"
        return head.encode()

    async def send(self, data: bytes) -> str:
        """Send something whole and read the answer to its end: the status, or why there is none."""
        return await self._exchange(data, whole=True)

    async def hold(self, seconds: float = HOLD_SECONDS) -> str:
        """Connect, send nothing, and wait for so long: how the server ends it, or "held"."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self._exchange(b"", whole=False)
        return "held"

    async def _exchange(self, data: bytes, *, whole: bool) -> str:
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return "not connected"
        try:
            writer.write(data)
            async with asyncio.timeout(SILENCE_SECONDS if whole else None):
                head = await reader.read(READ_BYTES)
                while whole and await reader.read(READ_BYTES):
                    pass
        except TimeoutError:
            return "silent"
        except OSError:
            return "closed"
        finally:
            writer.transport.abort()
        return head[9:12].decode(errors="replace") or "closed"


@dataclass(frozen=True)
class Attack:
    """One attack, what it is called, and the outcomes that are right for whoever tries it."""

    name: str
    run: Callable[[Target, random.Random], Awaitable[str]]
    expected: frozenset[str]


def _short(target: Target, content: object = "hello", **more: object) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": target.model, "messages": messages, "max_tokens": 4, **more}).encode()


def _short_in(path: str, target: Target, **more: object) -> bytes:
    """A short request of any API."""
    if path == RESPONSES:
        return json.dumps({"model": target.model, "input": "hello", "max_output_tokens": 4, **more}).encode()
    return _short(target, **more)


async def _together(*tries: Awaitable[str]) -> str:
    """Several at once; the outcomes, each once."""
    return " ".join(sorted(set(await asyncio.gather(*tries))))


# schemas, pictures, bodies -------------------------------------------------------------------------------------


@cache
def _hostile() -> list[Schema]:
    more: list[Schema] = [
        {"type": "integer", "multipleOf": 2**61 - 1},
        {"type": "array", "items": {"type": "string", "maxLength": 10**9}, "minItems": 10**6},
    ]
    return [*hostile_schemas(), *more]


async def _schemas(target: Target, chance: random.Random) -> str:
    def body() -> bytes:
        wanted = {"name": "s", "strict": True, "schema": chance.choice(_hostile())}
        return _short(target, response_format={"type": "json_schema", "json_schema": wanted})

    return await _together(*(target.send(target.request(body())) for _ in range(2)))


async def _pictures(target: Target, chance: random.Random) -> str:
    body = json.dumps(chat_of(target.model, [one_colour()] * 16, f"{chance.random()}")).encode()
    return await _together(*(target.send(target.request(body)) for _ in range(2)))


HEAVY = ("parts", "lists", "message", "tokenize", "text", "ids", "blocks", "system", "calls")


@cache
def _heavy(name: str, model: str) -> tuple[str, bytes]:
    """A body that is large or has many values, and its path."""

    def body(**fields: object) -> bytes:
        return json.dumps({"model": model, **fields}).encode()

    def chat(values: bytes) -> bytes:
        return body(messages=[]).replace(b"[]", b"[" + values + b"]")

    match name:
        case "parts":
            parts = b'{"type":"text","text":""},' * 1_200_000
            return CHAT, chat(b'{"role":"user","content":[' + parts[:-1] + b"]}")
        case "lists":
            return CHAT, chat(b"[]," * 11_000_000 + b"[]")
        case "message":
            return CHAT, body(messages=[{"role": "user", "content": "a b " * 250_000}])
        case "blocks":
            results = [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "a"}]}] * 9_000
            turns = [{"role": "user", "content": results[at : at + 1_000]} for at in range(0, len(results), 1_000)]
            return MESSAGES, body(messages=turns, max_tokens=4)
        case "system":
            hello = [{"role": "user", "content": "hello"}]
            return f"{MESSAGES}/count_tokens", body(messages=hello, system="a b " * 250_000)
        case "calls":
            call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}" + " " * 500}
            return RESPONSES, body(input=[{"role": "user", "content": "hello"}, *[call] * 2_047])
        case "tokenize":
            return "/tokenize", body(prompt="a b " * 250_000)
        case "text":
            return "/v1/completions", body(prompt="word " * 800_000)
        case _:
            return "/v1/completions", body(prompt=[*range(190_000)])


async def _bodies(target: Target, chance: random.Random) -> str:
    path, body = _heavy(chance.choice(HEAVY), target.model)
    return await target.send(target.request(body, path))


async def _refused_picture(target: Target, _: random.Random) -> str:
    url = "data:image/tiff;base64," + "A" * (12 * 2**20)
    return await target.send(target.request(_short(target, [{"type": "image_url", "image_url": {"url": url}}])))


async def _tools(target: Target, chance: random.Random) -> str:
    """128 tools that need not be called, of hostile schemas, in any API."""
    path = chance.choice((CHAT, MESSAGES, RESPONSES))
    tools = []
    for number in range(128):
        name, schema = f"f{number}", {"type": "object", "properties": {"a": chance.choice(_hostile()[:30])}}
        match path:
            case "/v1/messages":
                tools.append({"name": name, "input_schema": schema})
            case "/v1/responses":
                tools.append({"type": "function", "name": name, "parameters": schema})
            case _:
                tools.append({"type": "function", "function": {"name": name, "parameters": schema}})
    return await target.send(target.request(_short_in(path, target, tools=tools[: chance.randrange(1, 129)]), path))


# places and connections --------------------------------------------------------------------------------------------


async def _withheld(target: Target, *, sockets: int, announced: int, sent: int) -> str:
    url, key = f"http://{target.host}:{target.port}", target.keys["default"]
    try:
        bodies = await withheld_bodies(url, key, sockets=sockets, announced=announced, sent=sent)
    except OSError:
        return "not connected"
    await asyncio.sleep(HOLD_SECONDS)
    statuses = {str(status) if status else "closed" for status in bodies.answers}
    held = {"held"} if bodies.answers.total() < sockets else set[str]()
    await bodies.close()
    return " ".join(sorted(statuses | held))


async def _one_byte_bodies(target: Target, _: random.Random) -> str:
    return await _withheld(target, sockets=272, announced=1000, sent=1)


async def _large_bodies(target: Target, _: random.Random) -> str:
    return await _withheld(target, sockets=40, announced=31 * MEBI, sent=31 * MEBI - 1)


async def _idle(target: Target, _: random.Random) -> str:
    return await _together(*(target.hold() for _ in range(170)))


async def _malformed(target: Target, chance: random.Random) -> str:
    wrong = [b"GET\r\n\r\n", b"\x16\x03\x01" + chance.randbytes(200), b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n"]
    return await _together(*(target.send(chance.choice(wrong)) for _ in range(20)))


# the guard, keys, limits -------------------------------------------------------------------------------------------


async def _weak_steering(target: Target, chance: random.Random) -> str:
    path = chance.choice((CHAT, MESSAGES, RESPONSES))
    body = _short_in(path, target, guard={"mode": "steer", "eps": 0.001})
    return await target.send(target.request(body, path, key="watched"))


async def _strong_steering(target: Target, chance: random.Random) -> str:
    path = chance.choice((CHAT, MESSAGES, RESPONSES))
    return await target.send(target.request(_short_in(path, target, guard={"eps": 100}), path))


async def _many_choices(target: Target, _: random.Random) -> str:
    return await target.send(target.request(_short(target, n=16), key="limited"))


async def _two_keys(target: Target, _: random.Random) -> str:
    return await target.send(target.request(_short(target), head="authorization: Bearer another\r\n"))


async def _reload(target: Target, chance: random.Random) -> str:
    """The operator's disk was full: the file is cut, and the signal comes. Everybody must still need a key."""
    async with target.reloads:
        whole = target.config.read_bytes()
        try:
            target.config.write_bytes(chance.choice([b"", CUT, whole[: chance.randrange(len(whole))]]))
            os.kill(target.pid, signal.SIGHUP)
            await asyncio.sleep(0.5)  # nothing is awaited: whenever the file is read, no key must be lost
            outcome = await target.send(target.request(_short(target), key=None))
        finally:
            target.config.write_bytes(whole)
            os.kill(target.pid, signal.SIGHUP)
        return outcome


async def _console(target: Target, chance: random.Random) -> str:
    """Cookies that take long to read, wrong keys, keys of the API; and a reviewer who asks for much at once."""
    note = b'{"id":0,"label":"missed","note":"' + b"a" * 60_000 + b'"}'
    queries = ("which=all&labelled=true", "which=all&category=a", "since=9&least=0.1&most=1e-300")
    tries = [
        target.get("/console", None, 'cookie: a="' + "\\" * 60_000 + '"\r\n'),
        target.get("/health?" + "a&" * 30_000, None),
        target.get("/admin/now", "default"),
        target.request(b"key=" + b"%00" * 1_000, "/console/session", None),
        target.request(note, "/console/review/label", "console"),
        *(target.get(f"/admin/review/{each}?{chance.choice(queries)}") for each in ("summary", "next", "summary")),
        *(target.get(each, None) for each in ("/metrics", "/openapi.json", "/console/examples/gun.png") * 8),
    ]
    return await _together(*map(target.send, tries))


REFUSED = frozenset({"400", "403", "408", "413", "429", "503"})

ATTACKS = (
    Attack("schemas that are dear to compile", _schemas, REFUSED | {"200"}),
    Attack("16 pictures of 24 megapixels, twice", _pictures, REFUSED),
    Attack("bodies of megabytes, or of many values", _bodies, REFUSED),
    Attack("a cut config file and SIGHUP", _reload, frozenset({"401"})),
    Attack("bodies of one byte, 272", _one_byte_bodies, REFUSED | {"held", "closed"}),
    Attack("bodies of 31 MiB that do not end, 40", _large_bodies, REFUSED | {"held", "closed"}),
    Attack("idle connections, 170", _idle, frozenset({"held", "closed"})),
    Attack("steering too weak to steer", _weak_steering, REFUSED),
    Attack("steering too strong for words", _strong_steering, REFUSED),
    Attack("16 choices", _many_choices, frozenset({"200", "429", "503"})),
    Attack("no HTTP, 20", _malformed, frozenset({"400", "closed", "503"})),
    Attack("tools of hostile schemas", _tools, REFUSED | {"200"}),
    Attack("the console, metrics and reviews", _console, frozenset({"200", "400", "401", "403", "503"})),
    Attack("two keys", _two_keys, frozenset({"400"})),
    Attack("a refused picture of 12 MiB", _refused_picture, REFUSED),
)


@contextmanager
def poisoned(folder: Path) -> Iterator[Path]:
    """A folder to start the server in, with a module that must not be run: it would leave the file yielded."""
    proof = folder / "was-run"
    for name in ("numpy", "PIL", "json"):
        (folder / f"{name}.py").write_text(f"open({str(proof)!r}, 'w').close()\nraise SystemExit(1)\n")
    yield proof
