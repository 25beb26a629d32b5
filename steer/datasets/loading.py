"""Data sets by name: `hparams/Steer/dataset_format.yaml` says where each is, and its fields."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer.build import build, pick, read_yaml
from steer.datasets.reading import read_rows
from steer.datasets.rows import Row
from steer.files import find

FORMATS = "hparams/Steer/dataset_format.yaml"


@dataclass(kw_only=True)
class Format:
    """An entry of the format file.

    Attributes:
        file_path: A .jsonl, .json, .csv, .tsv or .parquet file.
        field_names: The name that methods use -> the file's own; the file's own names where empty.
        hf_path: Of a data set on the Hub; not supported yet.
    """

    file_path: str | None = None
    field_names: dict[str, str] = field(default_factory=dict)
    hf_path: str | None = None

    def __post_init__(self) -> None:
        if self.hf_path is not None:
            raise ValueError("hf_path: data on the Hub is not supported yet; give file_path")
        if self.file_path is None:
            raise ValueError("the key 'file_path' is missing")


class DatasetLoader:
    """Reads data sets as the format file describes them.

    Args:
        config_path: The format file: split -> name -> `file_path` and `field_names`.
    """

    def __init__(self, config_path: str = FORMATS) -> None:
        self.path = config_path
        self.formats: dict[str, dict[str, Any]] = {
            split: entries or {}
            for split, entries in read_yaml(config_path, "data set format file").items()
        }

    def load_file(self, dataset_name: str, split: str) -> list[Row]:
        """Rows of `dataset_name`, their fields renamed to the standard names.

        Args:
            dataset_name: As in the format file.
            split: `train`, `valid` or `generation`.

        Raises:
            ValueError: An unknown name or split, or a broken file; the message names the row.
            FileNotFoundError: The file is not there.
        """
        where = f"{self.path}: {split}"
        entries = pick(f"split of {self.path}", split, self.formats)
        if not isinstance(entries, Mapping):
            raise ValueError(f"{where} must be a mapping of data sets: got {entries!r}")
        entry = pick(f"{split} data set of {self.path}", dataset_name, entries)
        where = f"{where}: {dataset_name}"
        if not isinstance(entry, Mapping):
            raise ValueError(f"{where} must be a mapping with file_path: got {entry!r}")
        form = build(Format, entry, dict.fromkeys(entry, where), where)
        path = find(form.file_path or "", f"data for {dataset_name!r} ({split})")
        names = form.field_names
        return [_renamed(row, names, path, n) for n, row in enumerate(read_rows(path), start=1)]

    def has(self, dataset_name: str, split: str) -> bool:
        """Whether the format file has that data set in that split."""
        return dataset_name in self.formats.get(split, {})


def _renamed(row: Row, names: Mapping[str, str], path: Path, number: int) -> Row:
    if not names:
        return row
    missing = [theirs for theirs in names.values() if theirs not in row]
    if missing:
        raise ValueError(
            f"{path} row {number} has no {', '.join(map(repr, missing))}: it has "
            f"{', '.join(map(repr, row)) or 'nothing'} (field_names in {FORMATS} says what is read)"
        )
    return {ours: row[theirs] for ours, theirs in names.items()}


def prepare_train_dataset(cfg: Mapping[str, Any] | str | Path) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.steer_train_dataset` names, by name.

    Args:
        cfg: The top-level config: from Hydra, a mapping, or a path to a YAML file.
    """
    return _named(cfg, "steer_train_dataset", "train")


prepare_train_datasets = prepare_train_dataset


def prepare_generation_datasets(cfg: Mapping[str, Any] | str | Path) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.generation_data` names, by name."""
    return _named(cfg, "generation_data", "generation")


def _named(cfg: Mapping[str, Any] | str | Path, key: str, split: str) -> dict[str, list[Row]]:
    values = read_yaml(cfg, "config") if isinstance(cfg, str | Path) else cfg
    names = values.get(key)
    if not names:
        raise ValueError(f"{key} names no data set: give a name of section {split} of {FORMATS}")
    each = [names] if isinstance(names, str) else names
    if not isinstance(each, Sequence):
        raise ValueError(f"{key} must be a name or a list of names: got {names!r}")
    loader = DatasetLoader()
    return {name: loader.load_file(name, split) for name in each}
