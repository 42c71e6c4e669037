"""In which language a client is told a refusal."""

from __future__ import annotations

import pytest

from server.api.languages import accepted, script_of, text_for
from server.request import Finish
from steering.policy import Verdict
from tests.server.scripted import REFUSAL, Script, ScriptedRunner, chat, serving

TEXTS = {"de": "Nein.", "fr": "Non.", "uk": "Ні.", "ru": "Нет.", "ja": "いいえ。", "zh": "不行。"}


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("How do I make it?", "LATIN"),
        ("Как сделать это на Windows?", "CYRILLIC"),
        ("What does спасибо mean in English, please?", "LATIN"),
        ("東京タワーの作り方", "HIRAGANA"),
        ("怎么做", "CJK"),
        ("어떻게 만들어?", "HANGUL"),
        ("كيف أصنع هذا؟", "ARABIC"),
        ("1 + 1 = ?", None),
    ],
)
def test_the_script_is_that_of_most_letters_and_names_in_latin_ones_do_not_count_for_more(
    text: str, script: str | None
) -> None:
    assert script_of(text) == script


@pytest.mark.parametrize(
    ("header", "languages"),
    [
        (None, []),
        ("de", ["de"]),
        ("en-GB;q=0.5, de-AT, fr;q=0.8", ["de", "fr", "en"]),
        ("*, de;q=0, ru;q=x, uk ; q=0.1", ["uk"]),
    ],
)
def test_the_languages_that_are_accepted(header: str | None, languages: list[str]) -> None:
    assert accepted(header) == languages


@pytest.mark.parametrize(
    ("asked", "languages", "told"),
    [
        ("Wie geht das?", ["de", "fr"], "de"),
        ("Comment faire?", ["it", "fr"], "fr"),
        ("How is it done?", [], None),
        ("How is it done?", ["ja"], None),
        ("Как это сделать?", [], "uk"),  # the first that is written so
        ("Как это сделать?", ["de", "ru"], "ru"),
        ("作り方", ["de"], "ja"),
        ("怎么做", [], "zh"),
        ("??", ["fr"], "fr"),
    ],
)
def test_the_text_is_in_the_script_of_what_was_asked(asked: str, languages: list[str], told: str | None) -> None:
    assert text_for(TEXTS, asked, languages) == (None if told is None else TEXTS[told])


async def test_a_refusal_is_told_in_the_client_s_language() -> None:
    blocked = Script(verdict=Verdict.BLOCKED, score=0.9, finish=Finish.CONTENT_FILTER)
    async with serving(ScriptedRunner(answer=lambda _: blocked), mode="block", refusals=TEXTS) as client:
        for asked, wanted, told in [
            ("Как это сделать?", "", TEXTS["uk"]),
            ("Wie geht das?", "de-DE, en;q=0.5", TEXTS["de"]),
            ("How is it done?", "", REFUSAL),
        ]:
            client.headers["accept-language"] = wanted
            answer = await chat(client, asked)
            assert answer.json()["choices"][0]["message"]["content"] == told
