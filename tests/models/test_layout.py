"""Where turns end and what is content, learnt from each family's template and found in the ids alone."""

from __future__ import annotations

from typing import Any

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


def test_a_template_that_cannot_be_learnt_leaves_the_last_token() -> None:
    finder = LayoutFinder.learn(lambda chat: [1, 2, len(chat)], lambda _: False, frozenset(), -1)
    assert finder.header == ()
    assert list(finder.of([1, 2, 1, 2]).ends) == [3]


def test_a_template_that_refuses_chats_leaves_the_last_token(tiny_models: TinyModels) -> None:
    inputs = tiny_models.backbone("llama").inputs
    template = "{{ raise_exception('no chats') }}"
    refusing = InputBuilder(inputs._processor, inputs._family, template, inputs.image_token_id)
    assert list(refusing.layout([5, 6, 7]).ends) == [2]
