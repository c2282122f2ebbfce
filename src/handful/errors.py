"""Errors in the user's words, each with the exit code the command line gives it.

A message says what was found and where, what is allowed, and what to do about it.
"""


class HandfulError(Exception):
    """Anything that went wrong and is not a defect of the program; exit code 1."""

    exit_code = 1


class UsageError(HandfulError, ValueError):
    """The command or the call was wrong: an unknown name, an impossible setting; exit code 2."""

    exit_code = 2


class DataError(HandfulError, ValueError):
    """The data has a problem: a damaged file, a wrong geometry, an undeclared label; exit code 3."""

    exit_code = 3


class RunError(HandfulError, RuntimeError):
    """A run could not go on: the disk is full, a loss became NaN, a checkpoint is damaged; exit code 1."""


class Stopped(RunError):
    """A run was told to stop and has saved where it was; whatever comes after it should not begin."""


class NotFinite(ValueError):
    """NaN or infinite values inside a step: the network diverged, or an image was not finite."""


def nearest(name: str, known: list[str]) -> str:
    """Return the sentence that lists what exists and names the known word nearest to ``name``.

    Example:
        >>> nearest("spuervised", ["supervised", "mona"])
        "did you mean 'supervised'? Known: mona, supervised"
    """
    from difflib import get_close_matches

    close = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(sorted(known))}"
