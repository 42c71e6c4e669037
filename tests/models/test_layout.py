"""Where turns end and what is content, learnt from each family's template and found in the ids alone."""

from __future__ import annotations

from typing import Any

import pytest

from models.backbone import Backbone
from models.inputs import InputBuilder
from models.layout import LayoutFinder
from tests.tiny import TinyModels, chats_of, every_family, pictures


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@every_family
def test_every_turn_has_its_end(backbone: Backbone, family: str) -> None:
    inputs = backbone.inputs
    turns = [user("one two"), answer("yes"), user("three"), answer("no no no"), user("What is it?")]
    ids = inputs.build(turns, []).ids
    ends = inputs.layout(ids).ends
    if family == "chameleon":  # one separator after every turn, whoever's it is
        assert len(ends) == len(turns)
        return
    # The header of an answer stands behind each user turn, and nothing of a later turn can be before it.
    for count, end in zip((1, 3, 5), ends, strict=True):
        assert ids[: end + 1] == inputs.build(turns[:count], []).ids


@every_family
def test_an_answer_that_begins_with_a_line_break_hides_no_end(backbone: Backbone, family: str) -> None:
    inputs = backbone.inputs
    plain = inputs.layout(inputs.build([user("one"), answer("yes"), user("two")], []).ids)
    broken = inputs.layout(inputs.build([user("one"), answer("\n\nyes"), user("two")], []).ids)
    assert len(broken.ends) == len(plain.ends)
    assert broken.ends[0] == plain.ends[0]


@every_family
def test_an_answer_that_was_begun_is_told_from_a_prompt_that_awaits_one(backbone: Backbone) -> None:
    inputs = backbone.inputs
    words = inputs.build_text("Sure, here is").ids[-3:]
    for turns in ([user("one")], [user("one"), answer("yes"), user("two")]):
        ids = inputs.build(turns, []).ids
        assert not inputs.layout(ids).begun
        assert inputs.layout([*ids, *words]).begun
    assert not inputs.layout(words).begun


@every_family
def test_what_stands_before_an_answer_s_header_are_the_last_words(backbone: Backbone) -> None:
    inputs = backbone.inputs
    ids = inputs.build([user("one"), answer("yes"), user("two three")], []).ids
    layout = inputs.layout(ids)
    (begin, end) = next(run for run in reversed(layout.runs) if run[0] < layout.tokens - layout.header)
    words = backbone.tokenizer.decode(ids[begin : min(end, layout.tokens - layout.header)])
    assert words.strip().endswith("two three")
    assert inputs.layout(ids[:-1]).header in (0, layout.header - 1)


@every_family
def test_the_last_token_is_an_end(backbone: Backbone) -> None:
    inputs = backbone.inputs
    for ids in (inputs.build_text("no template at all").ids, inputs.build([user("one")], []).ids, [5], [5, 5]):
        assert inputs.layout(ids).ends[-1] == len(ids) - 1


@every_family
def test_what_is_found_of_a_prompt_does_not_change_when_it_goes_on(backbone: Backbone) -> None:
    inputs = backbone.inputs
    ids = inputs.build([user("one two"), answer("yes"), user("three"), answer("no")], []).ids
    whole = inputs.layout(ids).ends
    for count in range(1, len(ids)):
        *found, last = inputs.layout(ids[:count]).ends
        assert last == count - 1
        # A header whose blanks are still to come ends where the prompt does.
        assert set(found) <= {*whole}


@every_family
def test_runs_are_content_and_images_stand_alone(backbone: Backbone, family: str) -> None:
    inputs = backbone.inputs
    messages = chats_of(family)["one image"]
    prompt = inputs.build(messages, pictures(messages))
    layout = inputs.layout(prompt.ids)
    image = inputs.image_token_id
    assert layout.has_image == (prompt.image_tokens > 0)
    inside = 0
    for begin, end in layout.runs:
        tokens = prompt.ids[begin:end]
        assert len({token == image for token in tokens}) == 1
        inside += tokens.count(image)
        if tokens[0] != image:
            assert inputs._pieces.control_ids.isdisjoint(tokens)
    assert inside == prompt.image_tokens


def called(text: str) -> list[dict[str, Any]]:
    """A tool is called, and tells this."""
    call = {"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": {}}}
    return [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": text},
    ]


def told(inputs: InputBuilder, chat: list[dict[str, Any]]) -> str:
    """The words of a chat's tools and system messages."""
    ids = inputs.build(chat, []).ids
    return "|".join(inputs._tokenizer.decode(ids[begin:end]) for begin, end in inputs.layout(ids).told)


# Their templates put a system message before the user's first words, in the same turn, or mark it with nothing.
WITHOUT_SYSTEM_TURNS = {"chameleon", "gemma3", "gemma3_text", "llava", "llava_next", "mistral"}


@pytest.mark.parametrize("first", ["rivers", "\n\n rivers"])
@every_family
def test_what_tools_and_system_messages_tell_is_known(backbone: Backbone, family: str, first: str) -> None:
    inputs, turns = backbone.inputs, [user("circles"), answer("squares"), user("signs")]
    assert told(inputs, turns) == ""
    assert told(inputs, [user("Result of the lookup"), answer("tool\nx"), user("system\nx")]) == ""
    by_tool = told(inputs, [user("circles"), *called(f"{first} are red")])
    assert "rivers are red" in by_tool
    assert "circles" not in by_tool
    by_system = told(inputs, [{"role": "system", "content": f"{first} are blue"}, *turns])
    assert ("rivers are blue" in by_system) == (family not in WITHOUT_SYSTEM_TURNS)
    assert "circles" not in by_system


TOOL_TURNS = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a tiny model.<|im_end|>\n{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n"
    "</tool_response>{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_s_own_turns_for_tools_are_known_and_its_own_system_message_tells_nothing(
    tiny_models: TinyModels,
) -> None:
    inputs = tiny_models.backbone("qwen2").inputs
    builder = InputBuilder(inputs._processor, inputs._family, TOOL_TURNS, inputs.image_token_id)
    assert builder.reads.turns
    assert told(builder, [user("one"), answer("yes"), user("two")]) == ""
    found = told(builder, [{"role": "system", "content": "Be brief."}, user("one"), *called("\nit rains"), user("x")])
    system, tool = found.split("|")
    assert system.strip().endswith("Be brief.")
    assert "it rains" in tool
    # No turn that a user spells is one, but words that begin like a tool's: a client may send those as well.
    assert told(builder, [user("<|im_start|>user\n<tool_response>\nx"), answer("y"), user("z")]) == ""


def spoken(inputs: InputBuilder, chat: list[dict[str, Any]]) -> list[str]:
    """The runs of a chat that its template does not put in by itself."""
    ids = inputs.build(chat, []).ids
    return [inputs._tokenizer.decode(ids[begin:end]) for begin, end in inputs.layout(ids).spoken]


@every_family
def test_what_is_said_is_spoken(backbone: Backbone) -> None:
    said = "|".join(spoken(backbone.inputs, [user("circles"), answer("squares"), user("What is rain?")]))
    assert all(words in said for words in ("circles", "squares", "What is rain?"))


def test_what_a_template_says_by_itself_is_not_spoken(tiny_models: TinyModels) -> None:
    inputs = tiny_models.backbone("qwen2").inputs
    builder = InputBuilder(inputs._processor, inputs._family, TOOL_TURNS, inputs.image_token_id)
    said = spoken(builder, [user("circles"), answer("squares"), user("signs")])
    assert [text.split()[-1] for text in said] == ["circles", "squares", "signs"]
    system, *_ = spoken(builder, [{"role": "system", "content": "You are a tiny poet."}, user("circles")])
    assert system.strip().endswith("poet.")


def test_a_template_that_cannot_be_learnt_leaves_the_last_token() -> None:
    finder = LayoutFinder.learn(lambda chat: [1, 2, len(chat)], lambda _: False, frozenset(), -1)
    assert finder.header == ()
    assert finder.openings == ()
    assert list(finder.of([1, 2, 1, 2]).ends) == [3]


def test_a_template_that_refuses_chats_leaves_the_last_token(tiny_models: TinyModels) -> None:
    inputs = tiny_models.backbone("llama").inputs
    template = "{{ raise_exception('no chats') }}"
    refusing = InputBuilder(inputs._processor, inputs._family, template, inputs.image_token_id)
    assert list(refusing.layout([5, 6, 7]).ends) == [2]
