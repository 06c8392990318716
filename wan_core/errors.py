"""Errors that a user can cause: what is wrong, in which file or input, what was found, and the one thing to do."""

from __future__ import annotations


class WanError(ValueError):
    """Base of every error that a user can cause and mend.

    The text is built here and nowhere else, so that tests and callers look at the fields:
    `what` is wrong, `where` (absolute path, or name of an input), `found`, `expected`, `remedy`.
    """

    def __init__(self, what: str, *, where: str = "", found: str = "", expected: str = "", remedy: str) -> None:
        self.what, self.where, self.found, self.expected, self.remedy = what, where, found, expected, remedy
        facts = ", ".join(part for part in (found and f"found {found}", expected and f"expected {expected}") if part)
        lead = f"{what}: {where}" if where else what
        sentences = (lead, facts[:1].upper() + facts[1:], remedy)
        super().__init__(
            " ".join(part if part.endswith("...") else f"{part.rstrip('.')}." for part in sentences if part)
        )


class WeightsFileError(WanError):
    """A file that cannot be read as weights: truncated, a web page, a pickle, a broken header."""


class WrongModelError(WanError):
    """A readable file or model in a place where another kind belongs."""


class InputError(WanError):
    """A size, length, text, image or number that the model does not take."""


class OutputError(WanError):
    """A file that cannot be written: the disk is full, the folder is not writable, the encoder gave up."""
