"""Rows, and what they must hold."""

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]


def text_of(row: Row, key: str, number: int) -> str:
    """The text under `key` of row `number`, counted from 1.

    Raises:
        ValueError: It is missing, NaN, not text, or empty; the message names the row.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"row {number} must be a mapping of fields: got {type(row).__name__}")
    if key not in row:
        raise ValueError(f"row {number} has no {key!r}: it has {', '.join(map(repr, row)) or 'nothing'}")
    value = row[key]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(f"row {number}: {key!r} is missing (null or NaN): fill it, or drop the row")
    if not isinstance(value, str):
        raise ValueError(f"row {number}: {key!r} must be text: got {type(value).__name__} {value!r}")
    if not value.strip():
        raise ValueError(f"row {number}: {key!r} is empty: fill it, or drop the row")
    return value


def answer_of(row: Row, key: str, number: int) -> str:
    """One side of a contrastive pair; `key` is `matching` or `not_matching`."""
    return text_of(row, key, number)


def input_of(row: Row, number: int) -> str:
    """What a generation row asks."""
    return text_of(row, "input", number)
