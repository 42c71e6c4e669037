"""What a user can put right, as one line each. Imports nothing, so that naming an error costs nothing.

ValueError
├── BundleError a bundle cannot be used
├── DataError   a data file cannot be used
├── FitError    the data cannot carry a guard
└── RunError    an evaluation cannot go on as it was asked for
"""

from __future__ import annotations


class BundleError(ValueError):
    """A bundle cannot be used; the message names the file, or what differs from the model, in one line."""


class DataError(ValueError):
    """A data file cannot be used; the message names file and row."""


class FitError(ValueError):
    """The data cannot carry a guard; the message says what is missing."""


class RunError(ValueError):
    """A run cannot go on as it was asked for; the message says why, and the way out."""
