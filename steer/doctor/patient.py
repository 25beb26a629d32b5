"""What is examined: a run's settings, and what can be had of its model, vectors and data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.datasets import DatasetLoader, Row, dataset_name, is_file_name
from steer.files import find
from steer.likelihood import last_logits
from steer.models import EditTensor, Intervention, SteeredModel, generate
from steer.models.tally import Tally
from steer.settings import Run
from steer.vectors import read_metadata

# Of unequal length, so that a batch of them needs padding.
TEXTS = (
    "Tell me about your day.",
    "Why?",
    "Describe a walk through a small town on a quiet morning.",
)
NEW_TOKENS = 4


@dataclass(frozen=True)
class StoredVector:
    """A vector's file, and what its folder says of it.

    Attributes:
        key: Of the method that it is for.
        path: The file, which may not be there.
        entry: Of `metadata.json`; None where it has none.
    """

    key: str
    path: Path
    entry: Mapping[str, Any] | None


class Patient:
    """A run, and what is found out about it on the way.

    Args:
        run: Its settings.
        model: Examined instead of loading the one of the settings.

    Attributes:
        model: None until it is loaded.
        steps: Method key -> what it does; None until the vectors are loaded.
    """

    def __init__(self, run: Run, model: SteeredModel | None = None) -> None:
        self.run, self.given = run, model
        self.model: SteeredModel | None = None
        self.steps: dict[str, list[Intervention]] | None = None
        self._rows: dict[tuple[str, str], Sequence[Row] | Exception] = {}

    @property
    def ready(self) -> SteeredModel:
        """The model, which has been loaded."""
        assert self.model is not None
        return self.model

    @property
    def edits(self) -> list[EditTensor]:
        """All edits of activations, in their order; idle ones too."""
        every = [step for steps in (self.steps or {}).values() for step in steps]
        return [step for step in every if isinstance(step, EditTensor)]

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of a few prompts, put before the model as the settings say."""
        tokenizer, chat = self.ready.tokenizer, self.run.settings.chat
        found = [chat.encode(tokenizer, chat.text(tokenizer, text)) for text in TEXTS]
        return [ids or [self.ready.first_token] for ids in found]

    def logits(self, edits: Sequence[EditTensor], rows: Sequence[Sequence[int]]) -> Tensor:
        """Last-column logits [rows, vocab] of a batch of `rows` under `edits`."""
        model = self.ready
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        with model.steering(edits, prompt_lengths=lengths):
            return last_logits(model, rows, 1)[:, -1].float()

    @cached_property
    def plain(self) -> Tensor:
        """Those of the prompts without any edit."""
        return self.logits([], self.prompts)

    @cached_property
    def steered(self) -> Tensor:
        """Those of the prompts under what is in force."""
        return self.logits(self.edits, self.prompts)

    @cached_property
    def tally(self) -> Tally:
        """Counts of what is in force while the prompts are answered."""
        found: Tally = {}
        generate(
            self.ready,
            TEXTS,
            chat=self.run.settings.chat,
            interventions=self.edits,
            tally=found,
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        return found

    @cached_property
    def stored(self) -> list[StoredVector]:
        """The vectors that methods would read from disk; of a folder that is not there, none."""
        found = []
        for key, folder in self.folders.items():
            half = self.run.methods[key].half
            metadata = read_metadata(folder) or {}
            entries = metadata.get("vectors", {})
            names = half.names() if hasattr(half, "names") else []
            found += [
                StoredVector(key, folder / f"{name}.pt", entries.get(name))
                for name in names or entries
            ]
        return found

    @property
    def folders(self) -> dict[str, Path]:
        """Method key -> its folder of vectors, where that is there."""
        given = {
            key: getattr(method.half, "steer_vector_load_dir", None)
            for key, method in self.run.methods.items()
        }
        return {k: place for k, name in given.items() if name and (place := _folder(name))}

    def data_of(self, key: str) -> dict[str, Mapping[str, Any]]:
        """Data set -> what the metadata of a method's vectors says of it."""
        entries = [one.entry or {} for one in self.stored if one.key == key]
        found = [entry.get("data") or {} for entry in entries]
        return {str(entry["name"]): entry for entry in found if "name" in entry}

    def rows(self, name: str, split: str) -> Sequence[Row]:
        """Rows of a data set, read once; training rows may come from a file of that name.

        Raises:
            ValueError: There is no such data set, or it is broken.
            OSError: Its file is not there.
        """
        settings = self.run.settings
        loader = DatasetLoader(source=settings.data_source, fields=settings.train_fields)
        place = (split == "train" and self.own_files.get(name)) or name
        return self._once((name, split), lambda: loader.load_file(place, split))

    @cached_property
    def own_files(self) -> dict[str, str]:
        """Name of a data set -> the file of one's own that the settings give for it."""
        given = self.run.settings.steer_train_dataset
        return {dataset_name(file): file for file in given if is_file_name(file)}

    def _once(self, key: tuple[str, str], load: Callable[[], Sequence[Row]]) -> Sequence[Row]:
        if key not in self._rows:
            try:
                self._rows[key] = load()
            except (ValueError, OSError) as error:
                self._rows[key] = error
        found = self._rows[key]
        if isinstance(found, Exception):
            raise found
        return found


def _folder(name: str) -> Path | None:
    try:
        place = find(name, "vector folder")
    except FileNotFoundError:
        return None
    return place if place.is_dir() else None
