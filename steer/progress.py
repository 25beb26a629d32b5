"""Progress of long work: a bar with the time left on a terminal, now and then a line in a log."""

import logging
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

from tqdm import tqdm

log = logging.getLogger(__name__)

# A line every so many seconds; work that takes less has none.
SECONDS = 30
LINE = "{desc}: {n_fmt} of {total_fmt} after {elapsed}, {remaining} left{postfix}"


Bar: TypeAlias = "tqdm[Any]"


class _Lines:
    """Takes what tqdm draws, and logs it."""

    def write(self, drawn: str) -> None:
        if line := drawn.strip():
            log.info(line)

    def flush(self) -> None:
        """Nothing is held back."""


def progress(
    items: Iterable[Any] | None = None,
    *,
    what: str,
    unit: str,
    total: int | None = None,
    done: int = 0,
    hidden: bool = False,
) -> Bar:
    """Shows how far the work on `items` is, or what `update` is told.

    Args:
        items: Handed on one by one.
        what: The work.
        unit: One of the things to be done.
        total: How many there are; the length of `items` where None.
        done: How many were done before.
        hidden: Whether to show nothing.
    """
    # Not `disable=False`, which the environment (TQDM_DISABLE) could not change.
    how: dict[str, Any] = {"disable": True} if hidden or log.disabled else {}
    if not is_watched():
        rare = {"mininterval": SECONDS, "maxinterval": SECONDS, "delay": SECONDS}
        how |= {"file": _Lines(), "bar_format": LINE, **rare}
    return tqdm(
        items, desc=what, unit=unit, total=total, initial=done, dynamic_ncols=is_watched(), **how
    )


def is_shown() -> bool:
    """Whether other libraries may draw bars, as while they read a model: not into a log."""
    return is_watched() and not log.disabled


def is_watched() -> bool:
    """Whether what is written to stderr may be overwritten: a terminal's, or a notebook's."""
    notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return notebook or (sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
