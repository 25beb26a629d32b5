"""Data sets by name, as `hparams/Steer/dataset_format.yaml` describes them, or by their file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.build import build, pick, read_yaml, unknown
from steer.datasets.formats import Format, grouped
from steer.datasets.hub import Unreachable, read_hub
from steer.datasets.in_memory import named_rows
from steer.datasets.own import dataset_name, is_file_name, own_rows
from steer.datasets.reading import READERS, files_at, read_all
from steer.datasets.rows import Row

FORMATS = "hparams/Steer/dataset_format.yaml"
SOURCES = ("auto", "file", "hub", "sample")
# Our split -> the Hub's.
HUB_SPLITS = {"train": "train", "valid": "validation", "generation": "test"}
HUB_PAGE = "https://huggingface.co/datasets/"
# EasyEdit2's key of the config -> the short one.
SHORT = {"steer_train_dataset": "train_data"}


class DatasetLoader:
    """Reads data sets as the format file describes them, each of its data sets once.

    Args:
        config_path: The format file: split -> name -> keys of `Format`.
        source: `file`, `hub`, `sample` (a few rows written for this project, in the shape of the
            original), or `auto`: the file where it is there, else the Hub.
        fields: Of a data set that is named by its file: our name of a field -> the file's; found
            by their names where empty.

    Attributes:
        formats: What the format file says.
    """

    def __init__(
        self,
        config_path: str = FORMATS,
        source: str = "auto",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        pick("data_source", source, dict.fromkeys(SOURCES))
        self.path, self.source, self.fields = config_path, source, fields or {}
        self.formats: dict[str, dict[str, Any]] = {
            split: entries or {}
            for split, entries in read_yaml(config_path, "data set format file").items()
        }
        self._groups: dict[tuple[str, str], dict[str, list[Row]]] = {}

    def load_file(self, dataset_name: str, split: str) -> list[Row]:
        """Rows of `dataset_name`, their fields under the standard names.

        Args:
            dataset_name: As in the format file, `<name>/<concept>` for one concept; or a file.
            split: `train`, `valid` or `generation`.

        Raises:
            ValueError: An unknown name or split, or a broken file; the message names the row.
            FileNotFoundError: The data is not there; the message says where to get it.
        """
        return [row for rows in self.load_groups(dataset_name, split).values() for row in rows]

    def load_groups(self, name: str, split: str) -> dict[str, list[Row]]:
        """The same by data set: one that has concepts is as many, `<name>/<concept>`."""
        if is_file_name(name):
            return {self._own_name(name): own_rows(name, split, self.fields)}
        entry = self._entry_name(name, split)
        if (entry, split) not in self._groups:
            read = self._rows(self._form(entry, split), entry, split)
            self._groups[entry, split] = grouped(*read, entry)
        groups = self._groups[entry, split]
        chosen = {n: [*rows] for n, rows in groups.items() if f"{n}/".startswith(f"{name}/")}
        if not chosen:
            raise ValueError(unknown(f"concept of {entry}", name, groups))
        return chosen

    def has(self, name: str, split: str) -> bool:
        """Whether the format file has that data set in that split, and its file is there.

        A concept is had where the split is parted by concepts.
        """
        entries = self.formats.get(split, {})
        if is_file_name(name) or all(part not in entries for part in _and_above(name)):
            return False
        entry = self._entry_name(name, split)
        form = self._form(entry, split)
        if name != entry and not form.groups:
            return False
        try:
            return self.source != "hub" and bool(self._files(form, name, split))
        except (FileNotFoundError, ValueError):
            return False

    def _own_name(self, given: str) -> str:
        name = dataset_name(given)
        if any(name in entries for entries in self.formats.values()):
            raise ValueError(
                f"{given} would be called {name!r}, which is a data set of {self.path}: rename it"
            )
        return name

    def _entry_name(self, name: str, split: str) -> str:
        """The entry that has `name`, or that `name` is a concept of."""
        entries = pick(f"split of {self.path}", split, self.formats)
        if not isinstance(entries, Mapping):
            raise ValueError(
                f"{self.path}: {split} must be a mapping of data sets: got {entries!r}"
            )
        entry = next((part for part in _and_above(name) if part in entries), name)
        if entry not in entries and Path(name).exists():
            kinds = ", ".join(READERS)
            raise ValueError(f"{name} is no data file: data can be read from files with {kinds}")
        pick(f"{split} data set of {self.path}", entry, entries)
        return entry

    def _form(self, entry: str, split: str) -> Format:
        where = f"{self.path}: {split}: {entry}"
        given = self.formats[split][entry]
        if not isinstance(given, Mapping):
            raise ValueError(f"{where} must be a mapping with file_path: got {given!r}")
        # EasyEdit2's spelling.
        given = {("icl_example" if k == "icl_exmaple" else k): v for k, v in given.items()}
        return build(Format, given, dict.fromkeys(given, where), where)

    def _rows(self, form: Format, entry: str, split: str) -> tuple[list[Row], Format]:
        """The rows of a data set, and the format of the source that they came from."""
        advice = f"field_names in {self.path} says what is read"
        if files := self._files(form, entry, split):
            read = read_all(files, form.columns)
            made = [form.rows(raws, str(file), advice) for file, raws in read.items()]
            return [row for rows in made for row in rows], form
        there = form.on_the_hub()
        hub_split = there.hf_split or HUB_SPLITS.get(split, split)
        try:
            raws = read_hub(str(there.hf_path), there.hf_config, hub_split, there.hf_files)
        except Unreachable as error:
            raise FileNotFoundError(
                f"no data for {entry!r} ({split}): cannot read {there.hf_path} from the Hugging "
                f"Face Hub: {error}; {_how_to_get(form)}"
            ) from error
        return there.rows(raws, str(there.hf_path), advice), there

    def _files(self, form: Format, entry: str, split: str) -> list[Path]:
        """The files to read; none where the Hub is to be asked."""
        path = (self.source == "sample" and form.sample_path) or form.file_path
        on_hub = form.hf_path is not None and self.source in ("auto", "hub")
        if self.source == "hub" or path is None:
            if on_hub:
                return []
            lacking = "hf_path" if self.source == "hub" else "file_path"
            raise ValueError(
                f"{self.path}: {split}: {entry}: the key {lacking!r} is missing "
                f"(data_source: {self.source})"
            )
        try:
            return files_at(path, f"data for {entry!r} ({split})")
        except FileNotFoundError as error:
            if on_hub:
                return []
            advice = _how_to_get(form)
            raise (FileNotFoundError(f"{error}; {advice}") if advice else error) from error


def _and_above(name: str) -> list[str]:
    """`a/b/c`, `a/b`, `a`."""
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts), 0, -1)]


def _how_to_get(form: Format) -> str:
    """What a user can do where the data of `form` is not at hand."""
    page = form.origin or (form.hf_path and f"{HUB_PAGE}{form.hf_path}")
    steps = [f"get it from {page}"] if page else []
    if form.gated:
        steps = [
            f"it is gated: accept its terms ({form.licence}) at {page} and log in (hf auth login, "
            "or HF_TOKEN)"
        ]
    if page and form.file_path:
        fields = ", ".join(map(str, _flat(form.field_names.values())))
        steps.append(f"or put a file with {fields} at {form.file_path}")
    if form.sample_path:
        steps.append("or try data_source=sample, a few rows written for this project")
    return ", ".join(steps)


def _flat(values: Any) -> list[Any]:
    return [one for value in values for one in (value if isinstance(value, list) else [value])]


def prepare_train_dataset(cfg: Any) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.steer_train_dataset` (or `train_data`) names, by name.

    Args:
        cfg: The top-level config: from Hydra, a mapping, or a path to a YAML file; or data that is
            in memory: a list of rows, or of tuples (matching, not_matching).
    """
    return _named(cfg, "steer_train_dataset", "train")


prepare_train_datasets = prepare_train_dataset


def prepare_generation_datasets(cfg: Any) -> dict[str, list[Row]]:
    """The rows of each data set that `cfg.generation_data` names, by name; `cfg` as above."""
    return _named(cfg, "generation_data", "generation")


def _named(cfg: Any, key: str, split: str) -> dict[str, list[Row]]:
    if isinstance(cfg, list | tuple):
        return named_rows(cfg)
    values = read_yaml(cfg, "config") if isinstance(cfg, str | Path) else cfg
    names = values.get(SHORT.get(key, key)) or values.get(key)
    if not names:
        raise ValueError(
            f"{key} names no data set: give a name of section {split} of {FORMATS}, or a file"
        )
    each = [names] if isinstance(names, str) else names
    if not isinstance(each, Sequence):
        raise ValueError(f"{key} must be a name or a list of names: got {names!r}")
    source, fields = values.get("data_source") or "auto", values.get(f"{split}_fields")
    if fields and not any(map(is_file_name, each)):
        raise ValueError(
            f"{split}_fields is for data named by its file, such as my.jsonl; the fields of "
            f"{', '.join(each)} are in {FORMATS}"
        )
    loader, found = DatasetLoader(source=source, fields=fields), {}
    for name in dict.fromkeys(each):
        groups = loader.load_groups(name, split)
        if twice := found.keys() & groups.keys():
            raise ValueError(f"{key}: two data sets would be called {sorted(twice)[0]!r}")
        found |= groups
    return found
