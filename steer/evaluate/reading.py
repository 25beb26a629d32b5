"""Result files: the steered and the unsteered answers of each of their lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.evaluate.base import Item, Missing
from steer.files import find, read_json

STEERED, UNSTEERED = "steered", "unsteered"
FIELDS = {STEERED: "pred", UNSTEERED: "orig_pred"}
SUFFIX = "_results"
# Where a reference response stands; EasyEdit2 reads gsm's from the second.
REFERENCES = ("reference_response", "answer")
# Where the log-probabilities of a question's choices stand, for each kind of answer.
CHOICES = {"pred": "choice_log_probs", "orig_pred": "orig_choice_log_probs"}
# Of a method's settings: what makes strengths comparable.
DETAILS = ("layers", "strength")


@dataclass(frozen=True)
class Side:
    """The answers of one kind.

    Attributes:
        items: Those with an answer.
        places: Where each of them stands in the file, from 0.
        missing: Those without.
    """

    items: list[Item]
    places: list[int]
    missing: list[Missing]


def read_sides(rows: Sequence[Mapping[str, Any]], where: str) -> dict[str, Side]:
    """The steered side of a result file and, where it has one, the unsteered.

    Args:
        rows: Its lines.
        where: Name of the file, for messages.

    Raises:
        ValueError: No lines, a line that lacks a field or has one of another type (named by
            number), or no answer at all.
    """
    if isinstance(rows, Mapping | str) or not isinstance(rows, Sequence):
        raise ValueError(f"{where} must hold a list of results: got {type(rows).__name__}")
    if not rows:
        raise ValueError(f"{where} holds no results")
    for number, row in enumerate(rows, start=1):
        _check(row, f"{where} item {number}")
    sides = {name: _side(rows, field) for name, field in FIELDS.items()}
    if not sides[STEERED].items:
        raise ValueError(f"{where} holds no answer: 'pred' of every item is empty")
    return sides if sides[UNSTEERED].items else {STEERED: sides[STEERED]}


def _check(row: object, place: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{place} must be an object {{...}}: got {type(row).__name__}")
    for field in ("input", "pred"):
        if field not in row:
            raise ValueError(f"{place} has no {field!r} (fields: {', '.join(map(str, row))})")
    if not isinstance(row["input"], str | None):
        raise ValueError(f"{place}: 'input' must be text: got {type(row['input']).__name__}")
    for field in FIELDS.values():
        answers = row.get(field) or []
        if not isinstance(answers, list) or not all(isinstance(text, str) for text in answers):
            raise ValueError(f"{place}: {field!r} must be a list of texts: got {row[field]!r:.80}")


def _side(rows: Sequence[Mapping[str, Any]], field: str) -> Side:
    places = [place for place, row in enumerate(rows) if row.get(field)]
    missing = [
        Missing(number, None, f"{field!r} holds no answer")
        for number, row in enumerate(rows, start=1)
        if not row.get(field)
    ]
    return Side([_item(rows[place], field) for place in places], places, missing)


def _item(row: Mapping[str, Any], field: str) -> Item:
    given = [row[name] for name in REFERENCES if row.get(name) is not None]
    own = {**row, CHOICES["pred"]: row.get(CHOICES[field])}
    return Item(row["input"] or "", tuple(row[field]), given[0] if given else None, own)


def result_files(path: str | Path) -> dict[str, Path]:
    """The result files that `path` means, by name: itself, or all below it that are called so.

    The name is that of the data set, after the folders between `path` and the file.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A folder without a result file.
    """
    place = find(path, "result file or folder")
    if place.is_file():
        return {dataset_name(place): place}
    files = sorted(place.rglob(f"*{SUFFIX}.json"))
    if not files:
        raise ValueError(f"{path}: no file below it is called <data set>{SUFFIX}.json")
    return {(f.parent.relative_to(place) / dataset_name(f)).as_posix(): f for f in files}


def dataset_name(path: Path) -> str:
    """`mine` for `mine_results.json`."""
    return path.stem.removesuffix(SUFFIX)


def read_results(path: Path) -> list[Mapping[str, Any]]:
    """The lines of a result file.

    Raises:
        ValueError: It cannot be read as one.
    """
    # Not at the top: `--help` reads no rows.
    from steer.datasets.reading import read_rows

    return read_rows(path)


def strengths(path: Path) -> dict[str, Any]:
    """Method -> what it was told of strength, from `<name>_run.json` beside a result file.

    Empty where that file is not there, as beside EasyEdit2's results, or names no method.

    Raises:
        ValueError: The file is not JSON.
    """
    told = {key: _strength(half) for key, half in _halves(_run(path)).items()}
    return {key: value for key, value in told.items() if value is not None}


def circumstances(path: Path) -> dict[str, Any]:
    """What else tells steered answers apart, from the same file: `data`, `model`, `methods`.

    `methods` has of each method its `layers`, and in `strength` what its strengths are shares of.
    None, and no method, where the file says nothing.

    Raises:
        ValueError: The file is not JSON.
    """
    run = _run(path)
    methods = {
        key: {name: half[name] for name in DETAILS if name in half}
        for key, half in _halves(run).items()
    }
    return {
        "data": _below(run, "data", "name"),
        "model": _below(run, "model", "id"),
        "methods": methods,
    }


def _run(path: Path) -> Any:
    beside = path.with_name(f"{dataset_name(path)}_run.json")
    return _below(read_json(beside), "run") if beside.is_file() else None


def _below(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _halves(run: Any) -> dict[str, Mapping[str, Any]]:
    methods = _below(run, "settings", "methods")
    halves = methods.items() if isinstance(methods, Mapping) else ()
    return {key: half for key, half in halves if isinstance(half, Mapping)}


def _strength(half: Mapping[str, Any]) -> Any:
    """One number where a method's strengths are all the same."""
    names = ("multipliers", "steer_values", "amount")
    found = next((half[name] for name in names if half.get(name) is not None), None)
    if isinstance(found, list) and len(set(found)) == 1:
        return found[0]
    return found
