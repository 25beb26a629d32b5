"""Checks of single values: what is missing, what is no text."""

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from typing import Any

from steer.datasets.checks.base import Finding, counted
from steer.datasets.checks.columns import ABSENT, FIELDS, SINGLE, Columns, is_missing
from steer.datasets.rows import SIDES

# Numbers, or more words than a field's name has.
LONGEST_NAME = 4
# As pandas and JSON write what is missing, read back as text. "None" may be an answer.
WORDS_FOR_MISSING = {"nan", "null", "<na>"}


def unknown_fields(data: Columns) -> Iterator[Finding]:
    """No field has a name that is known; perhaps as the first line is data."""
    for where, one in (("", data), ("held out: ", data.held_out)):
        if one is None or one.kind:
            continue
        if any(name.strip().isdecimal() or len(name.split()) > LONGEST_NAME for name in one.names):
            what = f"the first line seems to be data, not the fields' names: {one.names}"
            do = "name the fields in their order, as in --columns text,label"
        else:
            known = ", ".join(dict.fromkeys(name for names in FIELDS.values() for name in names))
            what = f"no field has a name that is known: the rows have {one.names}"
            do = f"say which is which, as in --fields input=my_field; known are {known}"
        yield Finding(level="error", what=where + what, do=do)


def missing(data: Columns) -> Iterator[Finding]:
    """Nothing, null, NaN or white space where a value is needed, or where most rows have one."""
    for name in dict.fromkeys([*data.needed, *data.fields]):
        needed = name in data.needed
        found: dict[str, list[int]] = defaultdict(list)
        excused = _with_other_side(data, name)
        for number, value in data.values(name):
            if number in excused:
                continue
            if is_missing(value):
                found["missing" if value is ABSENT else "null or NaN"].append(number)
            elif isinstance(value, str) and not value.strip():
                found["empty"].append(number)
        if not needed and sum(map(len, found.values())) == len(data.rows):
            continue
        for kind, rows in found.items():
            yield Finding(
                level="error" if needed else "warning",
                what=f"{name!r} is {kind} in {len(rows)} of {counted(data.rows)}",
                do="fill it, or drop the rows",
                rows=tuple(rows),
                drop=needed,
            )


def _with_other_side(data: Columns, name: str) -> Container[int]:
    """Of single answers, the rows that have the other one."""
    if data.kind != SINGLE or name not in SIDES:
        return ()
    (other,) = set(SIDES) - {name}
    return data.texts[other]


def missing_as_word(data: Columns) -> Iterator[Finding]:
    """A text that is the word for nothing."""
    for name, column in data.plain.items():
        if rows := tuple(n for n, text in column.items() if text in WORDS_FOR_MISSING):
            yield Finding(
                what=f"{name!r} is the word nan or null in {counted(rows)}",
                do="a missing value was written as text: fill it, or drop the rows",
                rows=rows,
            )


def not_text(data: Columns) -> Iterator[Finding]:
    """A number where text is needed, or text that has no UTF-8."""
    for name in data.texts.keys() - {"reference_response"}:
        values = [(n, v) for n, v in data.values(name) if not is_missing(v)]
        if rows := tuple(n for n, v in values if not isinstance(v, str | Mapping | list)):
            yield Finding(
                level="error",
                what=f"{name!r} is not text in {counted(rows)}",
                do="write it in quotes, or drop the rows",
                rows=rows,
                drop=True,
            )
        if rows := tuple(n for n, v in values if isinstance(v, str) and not _is_unicode(v)):
            yield Finding(
                level="error",
                what=f"{name!r} is not proper Unicode in {counted(rows)}",
                do="mend the characters (half of a surrogate pair), or drop the rows",
                rows=rows,
                drop=True,
            )


def _is_unicode(text: str) -> bool:
    return text.isascii() or text.encode("utf-8", "replace").decode("utf-8") == text


def nested(data: Columns) -> Iterator[Finding]:
    """An object or a list where text is needed."""
    for name in data.texts:
        values = {n: v for n, v in data.values(name) if isinstance(v, Mapping | list)}
        if not values:
            continue
        first, own = next(iter(values.values())), data.fields[name]
        inner = (
            next((k for k in first if isinstance(first[k], str)), None)
            if isinstance(first, Mapping)
            else None
        )
        yield Finding(
            level="error",
            what=f"{name!r} (the file's {own!r}) is {_kind(first)} where text is needed, in "
            f"{counted(values)}",
            do=f"take the text inside, as in --fields {name}={own}.{inner}"
            if inner
            else "write its text",
            rows=tuple(values),
        )


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(repr, list(value)[:3]))}"
    return "a list"


def null_scores(data: Columns) -> Iterator[Finding]:
    """Fields of numbers that are null in some rows, here or one level down."""
    nulls: dict[tuple[str, str], list[int]] = defaultdict(list)
    scores: set[tuple[str, str]] = set()
    for number, row in enumerate(data.rows, start=1):
        for place, value in _leaves(row):
            if is_missing(value):
                nulls[place].append(number)
            elif isinstance(value, float):
                scores.add(place)
    together: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for (parent, name), rows in nulls.items():
        if (parent, name) in scores:
            together[parent, tuple(rows)].append(name)
    for (parent, rows), names in together.items():
        named = f"{parent}.{names[0]}" if parent else names[0]
        more = f" (and {len(names) - 1} more scores)" if len(names) > 1 else ""
        yield Finding(
            what=f"the score {named!r}{more} is null in {counted(rows)}",
            do="leave these rows out of what is averaged; null is not 0",
            rows=rows,
        )


def _leaves(row: object) -> Iterator[tuple[tuple[str, str], Any]]:
    for key, value in row.items() if isinstance(row, Mapping) else ():
        if isinstance(value, Mapping):
            yield from (((str(key), str(inner)), v) for inner, v in value.items())
        else:
            yield ("", str(key)), value
