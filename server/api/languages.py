"""The language in which a client is told a refusal: by the script that it writes, and by what it accepts."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

LATIN = "LATIN"
MOST_CHARACTERS = 1_000  # of an `Accept-Language` that are read: a browser's has a hundred, a head may have 64 KiB
OTHER_SHARE = 1 / 3  # of the letters, from which a script other than Latin counts: names and terms are often Latin

# How the Unicode names of a script's letters begin, and what is written in it. All other languages have Latin ones.
_LANGUAGES = {
    "ARABIC": "ar fa ur ps ckb ug",
    "ARMENIAN": "hy",
    "BENGALI": "bn as",
    "CJK": "zh",
    "CYRILLIC": "ru uk bg be sr mk kk ky mn tg",
    "DEVANAGARI": "hi mr ne",
    "ETHIOPIC": "am ti",
    "GEORGIAN": "ka",
    "GREEK": "el",
    "GUJARATI": "gu",
    "GURMUKHI": "pa",
    "HANGUL": "ko",
    "HEBREW": "he yi",
    "HIRAGANA": "ja",
    "KANNADA": "kn",
    "KHMER": "km",
    "LAO": "lo",
    "MALAYALAM": "ml",
    "MYANMAR": "my",
    "SINHALA": "si",
    "TAMIL": "ta",
    "TELUGU": "te",
    "THAI": "th",
}
_SCRIPT_OF = {language: script for script, languages in _LANGUAGES.items() for language in languages.split()}


def script_of(text: str) -> str | None:
    """The script of most of a text's letters, by the word that their Unicode names begin with; None without letters.

    Another than Latin is one from a third of the letters on. Japanese is what has any kana; Chinese has none.
    """
    letters = Counter(unicodedata.name(letter, LATIN).partition(" ")[0] for letter in text if letter.isalpha())
    kana = letters.pop("KATAKANA", 0) + letters.pop("HIRAGANA", 0)
    if kana:
        letters["HIRAGANA"] = kana + letters.pop("CJK", 0)
    if not letters:
        return None
    others = [each for each in letters.most_common() if each[0] != LATIN]
    return others[0][0] if others and others[0][1] >= OTHER_SHARE * letters.total() else LATIN


def accepted(header: str | None) -> Sequence[str]:
    """The languages of an `Accept-Language`, without regions, the most wanted first, as far as it can be read."""
    wanted: list[tuple[float, str]] = []
    for part in (header or "")[:MOST_CHARACTERS].split(","):
        tag, _, quality = part.partition(";")
        language = tag.strip().lower().partition("-")[0]
        try:
            share = float(quality.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if language.isalpha() and share > 0:
            wanted.append((share, language))
    return [language for _, language in sorted(wanted, key=lambda each: -each[0])]


def text_for(texts: Mapping[str, str], asked: str, languages: Sequence[str]) -> str | None:
    """The text, of those by language, for who has asked this and accepts these; None where none is known to fit.

    It is in the script of what was asked: in the language that is wanted most, else in the first one that is written
    so. Latin letters are no language's alone: what is written in them has to be wanted.
    """
    script = script_of(asked) or LATIN
    fitting = {language: text for language, text in texts.items() if _SCRIPT_OF.get(language, LATIN) == script}
    for language in languages:
        if language in fitting:
            return fitting[language]
    return next(iter(fitting.values()), None) if script != LATIN else None
