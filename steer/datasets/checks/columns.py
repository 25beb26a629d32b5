"""Rows seen as columns: which of a file's fields is which of ours, by name."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from steer.build import unknown
from steer.datasets.names import FIELDS
from steer.datasets.rows import SIDES, Row

SINGLE = "single answers"
# What rows can be -> the fields that it takes, and those that may come with them; first fit first.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    SINGLE: (SIDES, ("question",)),
    "pairs": (SIDES, ("question",)),
    "labelled texts": (("text", "label"), ("question",)),
    "inputs": (("input",), ("reference_response", "label")),
    "texts": (("text",), ()),
    "outputs": (("output",), ("prompt", "input")),
}
ABSENT = object()


@dataclass(eq=False)
class Columns:
    """Rows under our names. A row's number counts from 1, as in every message.

    Attributes:
        rows: As they were read.
        fields: Our name -> the rows' own, `prompt.text` for what is nested; found where not given.
        held_out: Rows that nothing may be learnt from.
        tokenizer: For what is judged by tokens; None where it is not to be.
    """

    rows: Sequence[Row]
    fields: dict[str, str] = field(default_factory=dict)
    held_out: "Columns | None" = None
    tokenizer: Any = None

    def __post_init__(self) -> None:
        for ours in self.fields:
            if ours not in FIELDS:
                raise ValueError(unknown("field", ours, FIELDS))
        self.kind, self.fields = self._found()

    def _found(self) -> tuple[str | None, dict[str, str]]:
        there = self.fields | {
            ours: next(name for name in names if name in self.names)
            for ours, names in FIELDS.items()
            if ours not in self.fields and any(name in self.names for name in names)
        }
        for kind, (needed, more) in KINDS.items():
            # Where one side of a pair has our name, the other one is missing.
            half = kind == "pairs" and any(n in self.names or n in self.fields for n in needed)
            if half or (all(n in there for n in needed) and self._fits(kind, there)):
                taken = {ours: there[ours] for ours in needed if ours in there}
                for ours in more:
                    # Of two that go by one name, the first has it.
                    if ours in there and there[ours] not in taken.values():
                        taken[ours] = there[ours]
                return kind, taken
        return None, {}

    def _fits(self, kind: str, there: Mapping[str, str]) -> bool:
        """Whether rows that have the fields of a kind have its values."""
        if kind == SINGLE:
            one, other = (self._rows_with(there[side]) for side in SIDES)
            return bool(one and other) and one.isdisjoint(other)
        if kind == "inputs" and "output" in there:
            # An output may go without; what is to be answered may not.
            return len(self._rows_with(there["input"])) == len(self.rows)
        return True

    def _rows_with(self, own: str) -> set[int]:
        return {number for number, value in self._values(own) if not is_missing(value)}

    @cached_property
    def names(self) -> list[str]:
        """The fields of any row, in the order of their coming."""
        shapes = dict.fromkeys(tuple(row) for row in self.rows if isinstance(row, Mapping))
        return list(dict.fromkeys(str(key) for shape in shapes for key in shape))

    @property
    def needed(self) -> tuple[str, ...]:
        """The fields that rows of this kind must have."""
        return KINDS[self.kind][0] if self.kind else ()

    def values(self, name: str) -> Iterator[tuple[int, Any]]:
        """Each row's number and its value of our field `name`, `ABSENT` where it has none."""
        return self._values(self.fields.get(name, name))

    def _values(self, own: str) -> Iterator[tuple[int, Any]]:
        path = [own] if own in self.names else own.split(".")
        for number, row in enumerate(self.rows, start=1):
            value: Any = row
            for key in path:
                value = value.get(key, ABSENT) if isinstance(value, Mapping) else ABSENT
            yield number, value

    @cached_property
    def texts(self) -> dict[str, dict[int, str]]:
        """Our fields but the label -> row number -> text; where there is none, no number."""
        return {
            name: {n: v for n, v in self.values(name) if isinstance(v, str) and v.strip()}
            for name in self.fields
            if name != "label"
        }

    @cached_property
    def plain(self) -> dict[str, dict[int, str]]:
        """As `texts`, without what case and white space tell apart."""
        return {
            name: {n: " ".join(text.casefold().split()) for n, text in column.items()}
            for name, column in self.texts.items()
        }

    @cached_property
    def pairs(self) -> dict[int, tuple[str, str]]:
        """Row number -> both answers, of rows that have both."""
        one, other = (self.texts.get(name, {}) for name in ("matching", "not_matching"))
        return {n: (text, other[n]) for n, text in one.items() if n in other}

    @cached_property
    def apart(self) -> list[str]:
        """The fields that tell rows apart beside what they say: a concept, and choices."""
        concept = ("concept", "concept_id")
        return [n for n in self.names if n in concept or n.startswith("choice")]

    def about(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Each row's values of some of `apart`, as text."""
        columns = [[str(value) for _, value in self.values(name)] for name in names]
        return list(zip(*columns, strict=True)) if columns else [()] * len(self.rows)


def is_missing(value: object) -> bool:
    """Whether a value is not there, null or NaN."""
    return value is ABSENT or value is None or (isinstance(value, float) and math.isnan(value))
