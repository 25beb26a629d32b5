"""Data sets by name: `hparams/Steer/dataset_format.yaml` says where each is and what its fields are."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from steer.build import pick
from steer.datasets.rows import Row
from steer.files import find, read_json

FORMATS = "hparams/Steer/dataset_format.yaml"


class DatasetLoader:
    """Reads data sets as the format file describes them.

    Args:
        config_path: The format file: split -> name -> `file_path` and `field_names`.
    """

    def __init__(self, config_path: str = FORMATS) -> None:
        path = find(config_path, "data set format file")
        self.formats: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]

    def load_file(self, dataset_name: str, split: str) -> list[Row]:
        """Rows of `dataset_name`, their fields renamed to the standard names.

        Args:
            dataset_name: As in the format file.
            split: `train`, `valid` or `generation`.

        Raises:
            ValueError: An unknown name or split, or a broken file; the message names the row.
            FileNotFoundError: The file is not there.
        """
        entries = pick("split", split, self.formats)
        entry = pick(f"{split} data set", dataset_name, entries)
        path = find(entry["file_path"], f"data for {dataset_name!r}")
        names: dict[str, str] = entry.get("field_names") or {}
        return [_renamed(row, names, path, n) for n, row in enumerate(read_rows(path), start=1)]

    def has(self, dataset_name: str, split: str) -> bool:
        """Whether the format file has that data set in that split."""
        return dataset_name in (self.formats.get(split) or {})


def _renamed(row: Row, names: Mapping[str, str], path: Path, number: int) -> Row:
    if not names:
        return row
    missing = [theirs for theirs in names.values() if theirs not in row]
    if missing:
        raise ValueError(f"{path} row {number} has no {missing}: it has {list(row)}")
    return {ours: row[theirs] for ours, theirs in names.items()}


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file.

    Raises:
        ValueError: Another ending, or a row that is not one; the message names file and row.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise ValueError(f"{path}: cannot read {path.suffix!r} files (allowed: {', '.join(READERS)})")
    try:
        rows = READERS[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{path} has no rows")
    return rows


def _json_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number} is not valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path} line {number} must be an object: got {type(row).__name__}")
            rows.append(row)
    return rows


def _json(path: Path) -> list[Row]:
    value = read_json(path)
    rows = [value] if isinstance(value, dict) else value
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} must hold a list of objects")
    return rows


def _separated(separator: str) -> Callable[[Path], list[Row]]:
    def read(path: Path) -> list[Row]:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            try:
                rows = list(reader)
            except csv.Error as error:
                raise ValueError(f"{path} line {reader.line_num} is broken: {error}") from error
        for number, row in enumerate(rows, start=1):
            if None in row or None in row.values():
                raise ValueError(f"{path} row {number} does not have the header's number of fields")
        return rows  # type: ignore[return-value]

    return read


def _parquet(path: Path) -> list[Row]:
    import pandas as pd  # slow to import, and seldom needed

    return pd.read_parquet(path).to_dict("records")  # type: ignore[return-value]


READERS: dict[str, Callable[[Path], list[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".parquet": _parquet,
}


def prepare_train_dataset(cfg: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.steer_train_dataset` names, by name."""
    return _named(cfg, "steer_train_dataset", "train")


prepare_train_datasets = prepare_train_dataset


def prepare_generation_datasets(cfg: Mapping[str, Any]) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.generation_data` names, by name."""
    return _named(cfg, "generation_data", "generation")


def _named(cfg: Mapping[str, Any], key: str, split: str) -> dict[str, list[Row]]:
    names = cfg.get(key)
    if not names:
        raise ValueError(f"{key} names no data set: give a name of {FORMATS}")
    each: Sequence[str] = [names] if isinstance(names, str) else names
    loader = DatasetLoader()
    return {name: loader.load_file(name, split) for name in each}
