"""How families write calls: told apart by what a chat template makes of one, over tokens that stand for themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import pytest
from llguidance import LLTokenizer
from tokenizers import AddedToken

from models.call_grammar import CallGrammar, described_calls
from models.calls import ARGUMENTS, ENVELOPE, FAMILIES, CallSyntax
from models.grammar import plain_json
from models.schema import SchemaError, compile_source
from models.tool_turns import reads_of
from tests.server.scripted import EOS, byte_tokenizer

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = {"weather": WEATHER, "weather_now": NOTHING}
ROME = '{"city": "Rome", "days": 3}'

# What each family's own template does, in short.
_TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
_CALL = '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}'
TEMPLATES = {
    "hermes": _TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}\n<tool_call>\n" + _CALL + "}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n",
    "listed": _TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
    "<tool_call>[{% for c in m.tool_calls %}" + _CALL + "}{% endfor %}]</tool_call>{% endif %}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n",
    "llama": _TOOLS + "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}" + _CALL.replace("arguments\"", "parameters\"") + "}"
    "{% endfor %}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": _TOOLS + "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}" + _CALL
    + ', "id": "{{ c.id }}"}{% endfor %}]</s>{% else %}[INST] {{ m.content }}[/INST]{% endif %}{% endfor %}',
    "mistral_named": _TOOLS + "{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}{% endfor %}",
}  # fmt: skip


def reads(template: str) -> Any:
    environment = jinja2.Environment(autoescape=False)
    environment.filters["tojson"] = json.dumps

    def render(chat: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        flat = [{**m, "content": "".join(part["text"] for part in m["content"])} for m in chat]
        return environment.from_string(template).render(messages=flat, tools=tools)

    return reads_of(render)


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_template_tells_how_its_model_writes_calls(family: str) -> None:
    assert reads(TEMPLATES[family]).calls == FAMILIES[family]


def test_a_template_without_tools_or_with_calls_of_another_kind_has_no_syntax() -> None:
    assert reads(TEMPLATES["hermes"].removeprefix(_TOOLS)).calls is None
    assert reads(TEMPLATES["hermes"].replace("<tool_call>", "<call>")).calls is None
    assert reads(TEMPLATES["llama"].replace("_id|>\n\n{{ m.content", "_id|>\n\ncalls: {{ m.content")).calls is None


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One whose calls have tokens of their own, special or not, and one that thinks."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<tool_call>", "</tool_call>", "<think>")])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "<|x|>"]})
    return tokenizer


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> LLTokenizer:
    return LLTokenizer(plain_json(tokenizer), n_vocab=len(tokenizer), eos_token=[EOS])


def over(syntax: CallSyntax, tokenizer: Any) -> CallSyntax:
    added = tokenizer.added_tokens_decoder
    return syntax.over({i: str(t) for i, t in added.items()}, [i for i, t in added.items() if t.special])


def said(syntax: CallSyntax, *calls: tuple[str, str], text: str = "") -> str:
    """A text and calls after it, as the family writes them."""
    (name, arguments), *others = calls
    out = text + syntax.triggers[-1] + syntax.first(name) + arguments
    for name, arguments in others:
        out += syntax.further(name) + arguments
    return out + syntax.tail + syntax.closes


class Tried:
    """Whether a grammar takes texts, in their tokens and in bytes alone; it must not matter."""

    def __init__(self, grammar: CallGrammar, tokenizer: Any, vocabulary: LLTokenizer) -> None:
        written = json.loads(json.dumps(grammar.described()))
        self._matcher = compile_source(vocabulary, described_calls(written).source())
        self._tokenizer = tokenizer

    def __call__(self, text: str, *, whole: bool = True) -> bool:
        outcomes = {self._takes(self._tokenizer.encode(text), whole), self._takes(list(text.encode()), whole)}
        assert len(outcomes) == 1, text
        return outcomes.pop()

    def _takes(self, ids: list[int], whole: bool) -> bool:
        matcher = self._matcher.deep_copy()
        return matcher.consume_tokens(ids) and (matcher.is_accepting() or not whole)


@pytest.mark.parametrize("plain", [True, False], ids=["spelled", "own tokens"])
@pytest.mark.parametrize("family", FAMILIES)
def test_text_is_free_until_a_call_begins_and_then_its_schema_holds(
    family: str, plain: bool, tokenizer: Any, vocabulary: LLTokenizer
) -> None:
    syntax = FAMILIES[family] if plain else over(FAMILIES[family], tokenizer)
    if plain:
        tokenizer = byte_tokenizer()
        vocabulary = LLTokenizer(plain_json(tokenizer), n_vocab=len(tokenizer), eos_token=[EOS])
    takes = Tried(CallGrammar(syntax, FUNCTIONS), tokenizer, vocabulary)
    call = said(syntax, ("weather", ROME))
    assert takes("")
    assert takes('{"name": "Bob"} é <tool_cal [TOOL_ {')
    assert takes(call)
    assert takes(said(syntax, ("weather_now", "{}")))
    assert not takes(call + "x", whole=False)
    assert not takes(call[:-1])
    assert not takes(call.replace('"Rome"', "3"), whole=False)
    assert not takes(call.replace('"days"', '"more"'), whole=False)
    if family == "llama":
        assert takes("Hello. " + call + "!")  # a call in the middle is text
        assert takes("\n " + call)
        assert takes("Hello <|python_tag|>" + call)
    else:
        assert takes("Hello.\n" + call)
        assert not takes(call.replace("weather", "other"), whole=False)
        two = said(syntax, ("weather", ROME), ("weather_now", "{}"), text="x")
        assert takes(two)
        assert not Tried(CallGrammar(syntax, FUNCTIONS, several=False), tokenizer, vocabulary)(two, whole=False)


@pytest.mark.parametrize("family", [*FAMILIES, None])
def test_a_call_that_must_be_made_is_all_of_the_answer(
    family: str | None, tokenizer: Any, vocabulary: LLTokenizer
) -> None:
    syntax = ENVELOPE if family is None else over(FAMILIES[family], tokenizer)
    takes = Tried(CallGrammar(syntax, FUNCTIONS, forced=True), tokenizer, vocabulary)
    rome = json.dumps(json.loads(ROME), separators=(",", ":")) if family is None else ROME
    assert takes(said(syntax, ("weather", rome)))
    assert not takes("")
    assert not takes("x" + said(syntax, ("weather", rome)), whole=False)


def test_arguments_alone_are_a_call_of_the_one_function(tokenizer: Any, vocabulary: LLTokenizer) -> None:
    takes = Tried(CallGrammar(ARGUMENTS, {"weather": WEATHER}, several=False, forced=True), tokenizer, vocabulary)
    assert takes('{"city":"Rome"}')
    assert not takes("{}")


def test_where_json_is_wanted_an_answer_is_that_or_a_call(tokenizer: Any, vocabulary: LLTokenizer) -> None:
    syntax = over(FAMILIES["hermes"], tokenizer)
    takes = Tried(CallGrammar(syntax, FUNCTIONS, answer={"type": "array"}), tokenizer, vocabulary)
    assert takes("[1,2]")
    assert takes(said(syntax, ("weather", ROME)))
    assert not takes("x", whole=False)
    assert not takes("[]" + said(syntax, ("weather", ROME)), whole=False)


def test_ordinary_added_tokens_may_stand_in_a_text_and_special_ones_may_not(
    tokenizer: Any, vocabulary: LLTokenizer
) -> None:
    grammar = CallGrammar(over(FAMILIES["hermes"], tokenizer), FUNCTIONS)
    matcher = compile_source(vocabulary, grammar.source())
    thought = [*b"a", tokenizer.convert_tokens_to_ids("<think>"), *b"b"]
    assert matcher.deep_copy().consume_tokens(thought)
    assert not matcher.consume_tokens([*b"a", tokenizer.convert_tokens_to_ids("<|x|>")])


def test_a_schema_that_cannot_be_followed_is_refused(vocabulary: LLTokenizer) -> None:
    grammar = CallGrammar(FAMILIES["hermes"], {"f": {"type": "object", "properties": {"a": {"not": {}}}}})
    with pytest.raises(SchemaError):
        compile_source(vocabulary, grammar.source())
    with pytest.raises(SchemaError, match="values"):
        CallGrammar(FAMILIES["hermes"], {f"f{i}": {"enum": [*range(100)]} for i in range(100)}).check_size()
