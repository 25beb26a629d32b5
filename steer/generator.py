"""Data in, vectors out."""

import importlib.metadata
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils.logging import disable_progress_bar

from steer import __version__, processes
from steer.datasets import (
    DatasetLoader,
    Row,
    dataset_name,
    named_rows,
    prepare_train_dataset,
    warnings_of,
)
from steer.files import check_writable, fingerprint
from steer.judging import OTHER_ROWS, are_others, has_held_out, rows_digest
from steer.methods import Context, Maker, Trained, Trainer
from steer.models import SteeredModel
from steer.models.facts import model_facts, template_hash
from steer.secrets import redacted
from steer.settings import Run
from steer.vectors import Vectors, load_bundle, load_vectors, read_metadata, save_vectors

log = logging.getLogger(__name__)

TRAINING = "training.json"
VERSIONS = ("torch", "transformers")
NO_DATA = "no_data"  # the data set where no method reads any


class BaseVectorGenerator:
    """Make the vectors of every configured method from every data set given.

    Args:
        cfg: The top-level config: from Hydra, a mapping, or a path to a YAML file.
        model: Used instead of loading the one that `cfg` names.

    Attributes:
        hparams_dict: Method key -> its settings; may be changed between calls.
        trained: Data set -> method key -> what training gave, folds for judging included.
    """

    def __init__(self, cfg: Any, model: SteeredModel | None = None) -> None:
        self.config = cfg
        self.run = Run.of(cfg, "generate")
        self.settings = self.run.settings
        for note in self.run.notes:
            log.info(note)
        self.hparams_dict: dict[str, Trainer | Maker] = {
            k: m.half for k, m in self.run.methods.items()
        }
        self.trained: dict[str, dict[str, Trained]] = {}
        self._rows: Mapping[str, Sequence[Row]] = {}
        self._of_files: Mapping[str, Sequence[Row]] = {}
        self._model = model

    @property
    def model(self) -> SteeredModel:
        """The model, loaded at the first use."""
        if self._model is None:
            self._model = self.settings.source.load()
        return self._model

    def generate_vectors(
        self, datasets: Mapping[str, Sequence[Any]] | Sequence[Any] | None = None
    ) -> dict[str, dict[str, Vectors]]:
        """Vectors by data set, method key and name; also written unless `save_vectors` is false.

        Args:
            datasets: Rows by data set name, or rows alone (see `named_rows`); those that the
                config names where None.

        Raises:
            ValueError: No method is configured, or rows are not what the method needs.
            OSError: Vectors cannot be written; mostly found out before anything is computed.
        """
        self._check_methods()
        datasets = self.training_data() if datasets is None else named_rows(datasets)
        self.trained, self._rows = {name: {} for name in datasets}, dict(datasets)
        self._loader = DatasetLoader(source=self.settings.data_source)  # files may have changed
        jobs = [(key, name) for name in datasets for key in self._keys(name)]
        if idle := self.hparams_dict.keys() - {key for key, _ in jobs}:
            raise ValueError(f"no data for {sorted(idle)}: got the data sets {list(datasets)}")
        for folder in (self.folder(*job) for job in jobs):
            if folder is not None:
                check_writable(folder)
        # What is made of other vectors may be made of those of another data set: it comes last.
        jobs.sort(key=lambda job: isinstance(self.hparams_dict[job[0]], Maker))
        learners = [name for key, name in jobs if not isinstance(self.hparams_dict[key], Maker)]
        for name in dict.fromkeys(learners):
            for line in warnings_of(datasets[name]):
                log.warning("data set %r: %s", name, line)
        for key, name in jobs:
            self.trained[name][key] = self._train(key, name, datasets[name])
        return {name: self.vectors(name) for name in datasets}

    def assist(self) -> None:
        """Read what the main process of several hands out, until it is done.

        For the others inside `steer.processes.together()`; they give the same config.

        Raises:
            RuntimeError: Another process failed.
        """
        disable_progress_bar()
        if not all(isinstance(half, Maker) for half in self.hparams_dict.values()):
            # While the main one loads its own.
            _ = self.model
        processes.assist(lambda job: job(self.model))

    def training_data(self) -> dict[str, list[Row]]:
        """The rows of each data set that the config names, by name.

        Where no method reads its data, a data set is only the name of a folder.

        Raises:
            ValueError: No method is configured, or no data set is named for those that need one.
        """
        self._check_methods()
        settings, halves = self.settings, self.hparams_dict
        names = list(map(dataset_name, settings.steer_train_dataset))
        if all(isinstance(half, Maker) for half in halves.values()):
            return {name: [] for name in names or [NO_DATA]}
        made = [n for n in names if all(isinstance(halves[k], Maker) for k in self._keys(n))]
        given = {
            "steer_train_dataset": [
                each for each in settings.steer_train_dataset if dataset_name(each) not in made
            ],
            "train_fields": settings.train_fields,
            "data_source": settings.data_source,
        }
        self._of_files = prepare_train_dataset(given)
        return self._of_files | {name: [] for name in made}

    def _keys(self, dataset: str) -> list[str]:
        """The methods that a data set is for."""
        own = (None, dataset)
        return [key for key in self.hparams_dict if self.run.methods[key].dataset in own]

    def _check_methods(self) -> None:
        if not self.hparams_dict:
            raise ValueError("no method to generate with: list files in steer_train_hparam_paths")

    def steered_together(self) -> list[list[str]]:
        """The data sets whose vectors steer one run: each alone, or with `combine` all of them.

        Those that the config names, where no method has learnt from them.
        """
        if not self.trained:
            return [self.settings.steer_train_dataset]
        return [list(self.trained)] if self.settings.combine else [[name] for name in self.trained]

    def vectors(self, *datasets: str) -> dict[str, Vectors]:
        """What was made of data sets, by method key."""
        return {key: t.vectors for name in datasets for key, t in self._made(name)}

    def folds(self, *datasets: str) -> dict[str, list[tuple[Vectors, list[Row]]]]:
        """By method key, vectors made without some of the rows, and those rows."""
        return {
            key: [(v, [self._rows[name][n] for n in numbers]) for v, numbers in trained.folds]
            for name in datasets
            for key, trained in self._made(name)
        }

    def _made(self, dataset: str) -> Iterable[tuple[str, Trained]]:
        return self.trained.get(dataset, {}).items()

    def folders(self, *datasets: str) -> list[Path]:
        """Where the vectors of data sets were written."""
        places = [self.folder(key, name) for name in datasets for key in self._keys(name)]
        return [place for place in places if place is not None]

    def folder(self, key: str, dataset: str) -> Path | None:
        """Where the vectors of a method and data set go; None where they are not written."""
        output = self.run.methods[key].output_dir
        if not self.settings.save_vectors:
            return None
        if output is None:
            raise ValueError(
                f"{key} has no place to write: give steer_vector_output_dirs, or set "
                "save_vectors: false"
            )
        return Path(output, dataset, self.hparams_dict[key].folder).expanduser()

    def _train(self, key: str, dataset: str, rows: Sequence[Row]) -> Trained:
        half, folder = self.hparams_dict[key], self.folder(key, dataset)
        recipe = self._recipe(key, dataset, rows)
        if folder is not None and self.settings.resume and not isinstance(half, Maker):
            there = _already_made(folder, fingerprint(recipe), self._needs_folds(dataset, rows))
            if there is not None:
                log.info("%s on %s: already made, in %s", key, dataset, folder)
                return Trained(there)
        context = Context(
            dataset=dataset,
            made={name: {k: t.own for k, t in self._made(name)} for name in self.trained},
            folder=folder,
            resume=self.settings.resume,
            about={k: v for k, v in recipe.items() if k not in ("method", "hparams")},
        )
        set_seed(self.settings.seed)
        log.debug("%s on %s: %d rows", key, dataset, len(rows))
        try:
            trained = (
                half.make(context)
                if isinstance(half, Maker)
                else half.train(self.model, rows, context)
            )
        except ValueError as error:
            raise ValueError(f"data set {dataset!r}, method {key}: {error}") from error
        for name in trained.vectors:
            known = trained.vectors.about.get(name, {})
            trained.vectors.about[name] = {**recipe, **known}
        if folder is not None:
            _save(folder, trained, recipe)
            log.debug("%s on %s: vectors in %s", key, dataset, folder)
        return trained

    def _needs_folds(self, dataset: str, rows: Sequence[Row]) -> bool:
        """Whether a report judges by folds, which are not kept with the vectors."""
        return self.settings.report == "full" and not has_held_out(self._loader, dataset, rows)

    def _recipe(self, key: str, dataset: str, rows: Sequence[Row]) -> dict[str, Any]:
        """All that decides a vector; kept in its metadata."""
        half = self.hparams_dict[key]
        read: dict[str, Any] = {}
        if not isinstance(half, Maker):
            read = {
                "model": model_facts(self.model),
                "chat_template_sha256": template_hash(self.model),
                "data": self._data(dataset, rows),
            }
        return {
            "method": self.run.methods[key].name,
            "hparams": _written(asdict(half)),  # type: ignore[call-overload]
            **read,
            "seed": self.settings.seed,
            "versions": {"steer": __version__}
            | {name: importlib.metadata.version(name) for name in VERSIONS},
        }

    def _data(self, dataset: str, rows: Sequence[Row]) -> dict[str, Any]:
        # What was just read is not read again.
        others = rows != self._of_files.get(dataset) and are_others(self._loader, dataset, rows)
        facts = {"name": dataset, "rows": len(rows), "sha256": rows_digest(rows)}
        return facts | ({OTHER_ROWS: True} if others else {})


def _save(folder: Path, trained: Trained, recipe: Mapping[str, Any]) -> None:
    own = trained.own
    kept = [trained.bundle] if trained.bundle else list(own)
    made = {**recipe, "recipe": fingerprint(recipe), "made_with": kept}
    made["folds"] = len(trained.folds)
    for name, vectors in trained.beside.items():
        about = {n: {**recipe, **_written(vectors.about.get(n, {}))} for n in vectors}
        borrowed = any(entry["method"] != recipe["method"] for entry in about.values())
        save_vectors(folder.parent / name, vectors, about, borrowed=borrowed)
    about = {name: {**made, **trained.vectors.about.get(name, {})} for name in kept}
    files = {TRAINING: trained.report} if trained.report else {}
    save_vectors(folder, own, about, bundle=trained.bundle, files={**trained.files, **files})


def _already_made(folder: Path, recipe: str, with_folds: bool) -> Vectors | None:
    """The vectors in `folder`; none `with_folds` where there were any, which are not kept."""
    entries = (read_metadata(folder) or {}).get("vectors", {}) if folder.is_dir() else {}
    names = [name for name, entry in entries.items() if entry.get("recipe") == recipe]
    if not names or sorted(names) != sorted(entries[names[0]]["made_with"]):
        return None
    if with_folds and entries[names[0]].get("folds") != 0:
        return None
    try:
        if "tensors" in entries[names[0]]:
            return load_bundle(folder, names[0])
        return load_vectors(folder, names)
    except (ValueError, FileNotFoundError) as error:
        log.warning("making the vectors anew: %s", error)
        return None


def _written(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as metadata may hold them: without secrets, and without places of this machine."""
    return redacted(_portable(dict(values)))


def _portable(value: Any) -> Any:
    """A copy of a JSON-like value in which files and folders of this machine have no place."""
    if isinstance(value, dict):
        return {key: _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, str) and Path(value).is_absolute() and Path(value).exists():
        return Path(value).name
    return value
