"""What is wrong with a data set, or may be: every check of `steer.datasets.checks` on its rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from steer.datasets.checks import CHECKS, PAIR_CHECKS, Finding
from steer.datasets.checks.columns import Columns
from steer.datasets.rows import Row


def check_rows(
    rows: Sequence[Row],
    held_out: Sequence[Row] | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    tokenizer: Any = None,
) -> list[Finding]:
    """What the checks find in `rows`, errors first.

    Args:
        rows: Contrastive pairs, labelled texts, single answers, outputs, or inputs.
        held_out: Rows that must not be among them.
        fields: Our name -> the rows' own, for those that are not found by name.
        tokenizer: A model's: lengths are counted in its tokens, and answers compared by them.

    Raises:
        ValueError: `fields` has a name that is not one of ours.
    """
    return findings(as_columns(rows, held_out, fields=fields, tokenizer=tokenizer))


def as_columns(
    rows: Sequence[Row],
    held_out: Sequence[Row] | None = None,
    *,
    fields: Mapping[str, str] | None = None,
    tokenizer: Any = None,
) -> Columns:
    """`rows` and what is held out, as the checks read them; see `check_rows`."""
    given = dict(fields or {})
    apart = None if held_out is None else Columns(held_out, given)
    return Columns(rows, given, apart, tokenizer)


def findings(data: Columns) -> list[Finding]:
    """What every check finds in `data`, errors first."""
    return sorted(_found(CHECKS, data), key=lambda finding: finding.level != "error")


def warnings_of(rows: Sequence[Row], held_out: Sequence[Row] | None = None) -> list[str]:
    """A line for each thing that may make vectors of contrastive `rows` mean something else.

    Nothing about other rows, nor about what no method takes: methods refuse that themselves.
    """
    data = as_columns(rows, held_out)
    if not data.pairs:
        return []
    return [str(finding) for finding in _found(PAIR_CHECKS, data)]


def _found(
    checks: Mapping[str, Callable[[Columns], Iterable[Finding]]], data: Columns
) -> list[Finding]:
    return [replace(f, check=name) for name, check in checks.items() for f in check(data)]
