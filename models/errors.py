"""What a user of a model can put right, or its engine. Imports nothing slow, so that naming an error costs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LoadError(RuntimeError):
    """The model cannot be served; the message says why in one line."""


class OutOfRows(RuntimeError):
    """No room for one more row or token: too many rows are open, or their blocks are used up."""


class PromptError(ValueError):
    """The messages cannot be made into a prompt for this model; the message says why, for the client."""


class PromptTooLong(PromptError):
    """A prompt that passes the model's context by far: it was not tokenised to its end."""


@contextmanager
def told_in_one_line(what: str) -> Iterator[None]:
    """Turn what the libraries raise into a LoadError of one line."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:  # their errors are of every type, and each one ends the start-up
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise LoadError(f"{what}: {reason}") from error
