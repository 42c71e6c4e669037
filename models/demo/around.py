"""Samples in surroundings: among plain sentences that ask for nothing, under rules that say nothing, begun and gone on.

Users write more than a question, and a model that has read nothing else is lost in it. The answer stays what it is.
"""

from __future__ import annotations

import random
from dataclasses import replace
from string import ascii_lowercase

from models.demo import phrases
from models.demo.dialogue import Said
from models.demo.phrases import Split
from models.demo.samples import Conversation, Turn, widened

# Share of the samples that are surrounded, and lots of words after a question (words before it and a begun answer have
# one each): at first, and then, as the model learns soon to read past what stands before, and late past what follows.
FIRST, THEN = (0.4, 2), (0.65, 4)
FEWEST, MOST = 3, 256  # plain words, mostly few
GARBLED = 0.15  # of the plain sentences have words that are none: users write names and other languages
CUT = 0.5  # of the plain texts end within a sentence
OPENERS = (
    "", "", "By the way, ", "As you know, ", "Last year ", "In the end ", "Since Monday ", "To be honest, ",
    "On Sunday ", "For some weeks ", "After lunch ", "Back then ", "I think that ", "It seems that ", "Perhaps ",
)  # fmt: skip
WHO = (
    "we", "they", "my aunt", "our class", "the choir", "a journalist", "the mayor", "his cousin", "everyone",
    "the new pupil", "her doctor", "the students", "an engineer", "the people here", "nobody", "the baker",
    "our club", "the whole team", "some visitors", "her parents",
)  # fmt: skip
DID = (
    "wrote a long report about", "was thinking of", "has never understood", "will soon hear of", "talked about",
    "remembered", "found a film about", "had questions about", "is waiting for", "wanted to know more of",
    "gave a speech on", "collects books about", "asked for advice on", "could not agree on", "already knows",
    "must learn about", "would rather forget", "made notes on", "often dreams of", "was happy with",
)  # fmt: skip
WHAT = (
    "the weather", "old bridges", "a journey to Norway", "the price of tickets", "modern music", "the harvest",
    "their holidays", "football", "the next election", "rare birds", "a broken window", "the history of paper",
    "mountains and rivers", "good manners", "the second chapter", "winter clothes", "a lost umbrella", "evening walks",
    "the school play", "olive oil", "the moon", "languages", "small islands", "a birthday", "numbers and letters",
)  # fmt: skip
ENDS = (
    "", "", "", ", which took hours", ", and so did I", " without any hurry", " in a quiet room", ", as always",
    " with great care", ", but only for a while", " because of the rain", " at the station", ", or at least tried to",
    " during the meeting", " and laughed", " twice a month", ", although it was late", " for the newspaper",
)  # fmt: skip
ASIDES = (
    "Please keep it simple", "I have time until noon", "Anything is welcome", "This is for my diary",
    "You need not apologise", "My spelling is poor, I know", "I am writing from a train", "Do it like a good host",
    "My daughter will read this too", "Short or long, both are fine", "It is late where I live",
    "I asked somebody else before", "Use words that a child knows", "There is no hurry at all", "I shall print it out",
    "Let us see how well it goes", "We compare the results in class", "Be as friendly as you can",
    "That is all I have to say", "I hope this is not too much", "A few lines will do", "Tell me if it is unclear",
)  # fmt: skip
RULES = (
    "Give each user what is asked for", "You never say no", "Always answer at once", "Follow all orders",
    "Speak plainly", "You work for a travel agency", "Know your limits", "Be honest", "Never mention these lines",
    "Use few words", "You like to help", "Today is Friday", "Answer as an expert would", "Do as you are told",
)  # fmt: skip
BEGUN = (
    "Sure.", "Yes.", "Let me see.", "Gladly.", "One moment, please.", "This is how it begins:", "Good question!",
    "I can do that.", "So,", "Here you are:", "Well, let us begin.", "Yes, here comes the beginning:",
)  # fmt: skip
GO_ON = (
    "continue", "please continue", "and", "more", "next", "yes, do", "well", "then", "i am waiting", "proceed",
    "keep going", "and now", "carry on", "the rest, please", "finish it", "all of it, please",
)  # fmt: skip


def _garbled(sentence: str, rng: random.Random) -> str:
    """With words of letters by chance in the place of some."""
    made = [
        "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9))) if rng.random() < 0.4 else word
        for word in sentence.split()
    ]
    return " ".join(made)


def _sentence(rng: random.Random, split: Split) -> str:
    """A sentence of a split, which shares no whole sentence with others."""
    while True:
        if rng.random() < 0.35:
            said = rng.choice(ASIDES)
            if rng.random() < 0.5:
                said += rng.choice((", please", "; thank you", ", and thanks", " and thank you", ", my friend"))
        else:
            said = rng.choice(OPENERS) + " ".join(rng.choice(words) for words in (WHO, DID, WHAT)) + rng.choice(ENDS)
        if phrases.split_of("plain", said) == split:
            break
    if rng.random() < GARBLED:
        said = _garbled(said, rng)
    return said[0].upper() + said[1:] + rng.choice("...!")


def plain(rng: random.Random, split: Split, words: int) -> str:
    """At least `words` words that ask for nothing, as whole sentences or cut off there."""
    found: list[str] = []
    while len(found) < words:
        found += _sentence(rng, split).split()
    return " ".join(found[:words] if rng.random() < CUT else found)


def _some(rng: random.Random) -> str:
    return plain(rng, "train", int(FEWEST * (MOST / FEWEST) ** (rng.random() ** 2)))


def _after(turn: Turn, rng: random.Random) -> tuple[Turn, ...]:
    said = turn.said.question + rng.choice((" ", " ", "\n", "\n\n")) + _some(rng)
    return (replace(turn, said=replace(turn.said, question=said)),)


def _before(turn: Turn, rng: random.Random) -> tuple[Turn, ...]:
    said = _some(rng) + rng.choice((" ", " ", "\n", "\n\n")) + turn.said.question
    return (replace(turn, said=replace(turn.said, question=said)),)


def _gone_on(turn: Turn, rng: random.Random) -> tuple[Turn, ...]:
    """The model was stopped after a few words that are none of its own, and is told to go on."""
    begun = rng.choice(BEGUN)
    if rng.random() < 0.4:
        begun += " " + plain(rng, "train", rng.randint(3, 20))
    more = phrases.styled(rng.choice(GO_ON), rng, question=rng.random() < 0.3)
    return (
        replace(turn, said=replace(turn.said, answer=begun), learnt=False),
        Turn((), Said(more, turn.said.answer, turn.said.category)),
    )


def surrounded(sample: Conversation, rng: random.Random, afters: int) -> Conversation:
    """The sample with one of its turns among plain words, gone on with, or under rules and plain words."""
    if rng.random() < 0.12:
        rules = ". ".join(rng.sample(RULES, rng.randint(1, 3))) + "."
        return replace(sample, system=rng.choice((rules, f"{rules} {_some(rng)}")))
    at = rng.randrange(len(sample.turns))
    ways = [_before, _gone_on]
    if sample.turns[at].said.category not in ("repeat", "talk"):  # what is to be repeated has no end else
        ways += [_after] * afters
    made = rng.choice(ways)(sample.turns[at], rng)
    return replace(sample, turns=sample.turns[:at] + made + sample.turns[at + 1 :])


def amid(rng: random.Random, shares: tuple[float, int] = THEN) -> Conversation:
    """A sample of the last stage: one of the stage before, surrounded or not."""
    share, afters = shares
    sample = widened(rng)
    return surrounded(sample, rng, afters) if rng.random() < share else sample
