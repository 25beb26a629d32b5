"""Checks of rows against each other: one that repeats another, contradicts it, or is held out."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

from steer.datasets.checks.base import Finding, counted, row_numbers
from steer.datasets.checks.columns import SINGLE, Columns, is_missing
from steer.datasets.rows import SIDES

# Our field -> row number -> text; and what a row is known by -> the rows' numbers.
Texts = Mapping[str, Mapping[int, str]]
Keys = dict[Hashable, list[int]]


def duplicates(data: Columns) -> Iterator[Finding]:
    """Rows that say what an earlier one says, but for case and spaces."""
    labels = {n: str(v) for n, v in data.values("label")} if "label" in data.fields else {}
    first: dict[Hashable, int] = {}
    again: list[int] = []
    for number, about in enumerate(data.about(data.apart), start=1):
        said = [column.get(number) for column in data.plain.values()]
        if any(said):
            key = (about, *said, labels.get(number))
            if first.setdefault(key, number) != number:
                again.append(number)
    if again:
        yield Finding(
            what=f"repeats of an earlier row (case and spaces aside): {counted(again)}",
            do="drop them, unless they are to count twice",
            rows=tuple(again),
            drop=True,
        )


def contradictions(data: Columns) -> Iterator[Finding]:
    """The same text wanted in one row and unwanted in another, or with two labels."""
    if data.kind in ("pairs", SINGLE):
        one, other = (_answers(data, data.plain, side, data.apart) for side in SIDES)
        alike = {n for key in one.keys() & other.keys() for n in one[key] if n in other[key]}
        both = {n for key in one.keys() & other.keys() for n in (*one[key], *other[key])} - alike
        what = "an answer is matching in one row and not_matching in another"
    else:
        both, what = _two_labels(data), "the same text has different labels"
    if both:
        yield Finding(
            level="error",
            what=f"{what}: {counted(both)}",
            do="decide which is right, or drop them",
            rows=tuple(sorted(both)),
            drop=True,
        )


def _two_labels(data: Columns) -> set[int]:
    if "label" not in data.fields:
        return set()
    labels = {n: str(v) for n, v in data.values("label") if not is_missing(v)}
    seen: dict[Hashable, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for key, rows in _answers(data, data.plain, data.needed[0], data.apart).items():
        for number in rows:
            if number in labels:
                seen[key][labels[number]].append(number)
    return {n for found in seen.values() if len(found) > 1 for rows in found.values() for n in rows}


def leakage(data: Columns) -> Iterator[Finding]:
    """Rows that are held out too, word for word or but for case and spaces."""
    if data.held_out is None:
        return
    found = _shared(data, data.held_out, "plain", _everything)
    exactly = _shared(data, data.held_out, "texts", _everything)
    if found:
        yield Finding(
            level="error",
            what=f"held out too: {counted(found)}, {len(exactly)} of them word for word",
            do="drop them here or there: what was learnt cannot be judged by them"
            f" (held-out {row_numbers(sorted({m for where in found.values() for m in where}))})",
            rows=tuple(sorted(found)),
            drop=True,
        )
    asked = _shared(data, data.held_out, "plain", _questions).keys() - found.keys()
    if asked:
        yield Finding(
            what=f"held out with other answers: the questions of {counted(asked)}",
            do="keep each question on one side, if new questions are what is to be judged",
            rows=tuple(sorted(asked)),
        )


def _shared(
    data: Columns,
    held_out: Columns,
    how: str,
    keys: Callable[[Columns, Texts, Sequence[str]], Keys],
) -> dict[int, list[int]]:
    # What one side alone has tells nothing of both.
    apart = [name for name in data.apart if name in held_out.apart]
    here, there = (keys(one, getattr(one, how), apart) for one in (data, held_out))
    shared: dict[int, list[int]] = defaultdict(list)
    for key in here.keys() & there.keys():
        for number in here[key]:
            shared[number] += there[key]
    return shared


def _everything(data: Columns, texts: Texts, apart: Sequence[str]) -> Keys:
    keys: Keys = defaultdict(list)
    for name in data.needed:
        for key, rows in _answers(data, texts, name, apart).items():
            keys[key] += rows
    return keys


def _answers(data: Columns, texts: Texts, name: str, apart: Sequence[str]) -> Keys:
    """The texts of a field, each with what it answers: one refusal fits many questions."""
    keys: Keys = defaultdict(list)
    about, questions = data.about(apart), _asked(texts)
    for number, text in texts.get(name, {}).items():
        keys[about[number - 1], questions.get(number), text].append(number)
    return keys


def _questions(data: Columns, texts: Texts, apart: Sequence[str]) -> Keys:
    keys: Keys = defaultdict(list)
    about = data.about(apart)
    for number, text in _asked(texts).items():
        keys[about[number - 1], text].append(number)
    return keys


def _asked(texts: Texts) -> Mapping[int, str]:
    return texts.get("question") or texts.get("input") or texts.get("prompt") or {}
