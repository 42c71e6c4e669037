"""Server-sent events: one line each, whatever their texts hold."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from server.api.events import HOLE, Template, event


def test_an_event_is_one_line_of_json() -> None:
    assert event({"text": "a\nb\r\n\u2028é"}) == b'data: {"text":"a\\nb\\r\\n\xe2\x80\xa8\xc3\xa9"}\n\n'


@given(st.text())
@example('"}\n\n\\ \0')
def test_a_template_that_is_filled_is_the_event(text: str) -> None:
    def data(said: str) -> object:
        return {"id": "a", "choices": [{"delta": {"content": said, "refusal": said}, "logprobs": None}]}

    assert Template(data(HOLE)).filled(text) == event(data(text))
