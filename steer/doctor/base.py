"""What a check finds."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "failure", "unchecked"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the doctor's.

    Attributes:
        check: The check's name.
        level: `failure` where a run would fail or not do what was asked for; `warning` where it may
            not; `unchecked` where nothing could be said.
        what: What was found, with the numbers seen.
        do: What to do about it; nothing where all is well.
    """

    check: str = ""
    level: Level
    what: str
    do: str = ""


def ok(what: str) -> Result:
    """All is well."""
    return Result(level="ok", what=what)


def warning(what: str, do: str) -> Result:
    """It may be wrong."""
    return Result(level="warning", what=what, do=do)


def failure(what: str, do: str) -> Result:
    """It is wrong."""
    return Result(level="failure", what=what, do=do)


def unchecked(what: str) -> Result:
    """Why nothing can be said."""
    return Result(level="unchecked", what=what)


def refused(error: Exception, do: str) -> Result:
    """A failure that the library's own error describes."""
    return failure(" ".join(str(error).split()) or type(error).__name__, do)
