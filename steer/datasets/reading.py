"""Rows out of files, by the file's ending."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from steer.datasets.rows import Row
from steer.files import find, project_root, read_json

# The csv module refuses longer fields than 128 KiB unless told otherwise.
LONGEST_FIELD = 2**31 - 1


def read_rows(path: str | Path, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file.

    Args:
        path: The file.
        columns: Names of the columns of a .csv or .tsv file whose first line is a row already; a
            first line that is just these names is no row.

    Raises:
        ValueError: Another ending, or a row that is not one; the message names file and row.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in READERS or path.is_dir():
        raise ValueError(
            f"{path}: cannot read {'a folder' if path.is_dir() else f'{path.suffix!r} files'} "
            f"(allowed: {', '.join(READERS)})"
        )
    try:
        rows = _separated(path, columns) if ending in SEPARATORS else READERS[ending](path)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8: {error}; save it as UTF-8, 'CSV UTF-8' in Excel"
        ) from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def files_at(path: str, what: str = "file") -> list[Path]:
    """A file, all files of a folder that can be read, or those that match a pattern, a/*.csv.

    Raises:
        FileNotFoundError: There is none, here or in the project.
    """
    if "*" not in path and not (place := find(path, what)).is_dir():
        return [place]
    pattern = Path(path if "*" in path else f"{place}/*").expanduser()
    roots = [Path(pattern.anchor)] if pattern.anchor else [Path(), project_root()]
    for root in roots:
        found = sorted(root.glob(str(pattern.relative_to(pattern.anchor))))
        if files := [file for file in found if file.suffix.lower() in READERS]:
            return files
    raise FileNotFoundError(f"no {what} at {path} (looked for {', '.join(READERS)} files)")


def read_all(files: Sequence[Path], columns: Sequence[str] = ()) -> dict[Path, list[Row]]:
    """The rows of each file; `columns` as for `read_rows`."""
    return {file: read_rows(file, columns) for file in files}


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(
                    f"{path} line {number} must be an object {{...}}: got {type(row).__name__}"
                )
            rows.append(row)
    return rows


def _json(path: Path) -> list[Row]:
    if not path.stat().st_size:
        return []
    value = read_json(path)
    rows: Any = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list):
        raise ValueError(f"{path} must hold a list of objects: got {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ValueError(
                f"{path} row {number} must be an object {{...}}: got {type(row).__name__}"
            )
    return rows


def _separated(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    csv.field_size_limit(LONGEST_FIELD)
    separator = SEPARATORS[path.suffix.lower()]
    with path.open(encoding="utf-8-sig", newline="") as file:
        if len(columns) != 1:
            # By itself: commas and quotes in the lines below would be an error of their own.
            _check_separator(path, next(filter(str.strip, file), "").rstrip("\r\n"), separator)
            file.seek(0)
        reader = csv.reader(file, delimiter=separator, strict=True)
        try:
            lines = [line for line in reader if line]
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num} is broken: {error}") from error
    header, *rows = lines or [[]]
    if columns and lines and header != list(columns):
        header, rows = list(columns), lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"{path} row {number} has {len(row)} fields, the header has {len(header)}: "
                f"{', '.join(header)}"
            )
    # A spreadsheet's blank columns are no fields.
    kept = [n for n, name in enumerate(header) if name or any(row[n] for row in rows)]
    names = [header[n] for n in kept]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{path}: the header has {', '.join(sorted(twice))!r} twice")
    return [{header[n]: row[n] for n in kept} for row in rows]


def _check_separator(path: Path, header: str, separator: str) -> None:
    def parts(by: str) -> int:
        return len(next(csv.reader([header], delimiter=by), []))

    other = next((by for by in "\t;|" if parts(by) > 1), "")
    if parts(separator) == 1 and other:
        raise ValueError(
            f"{path} has one field, {header!r}: its columns seem to be separated by "
            f"{other!r}; separate them by commas, or by tabs in a .tsv file"
        )


def _parquet(path: Path) -> list[Row]:
    # Slow to import, and seldom needed.
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a parquet file: {' '.join(str(error).split())}") from error


SEPARATORS = {".csv": ",", ".tsv": "\t"}
READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
