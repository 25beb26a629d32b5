"""The two halves of a steering method.

A half is a dataclass: its fields are its YAML keys, its one method is its one job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from steer.datasets import Row
from steer.models import Intervention, SteeredModel
from steer.vectors import Vectors


@dataclass(frozen=True)
class Context:
    """What a method may know of the run that it makes vectors in.

    Attributes:
        dataset: Name of the data set that the vectors are made of, or for.
        made: Data set -> method key -> what was made in this run so far.
        folder: Where the method's own files go; None where nothing is saved.
        resume: Whether to go on with what an unfinished run of the same settings left there.
        about: What decides the vectors besides the method's settings: data, model, template.
    """

    dataset: str = ""
    made: Mapping[str, Mapping[str, Vectors]] = field(default_factory=dict)
    folder: Path | None = None
    resume: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


ALONE = Context()


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        vectors: By name, `layer_<n>`, and what is known of each.
        folds: The vectors without each fold of the data, and the numbers of that fold's rows, so
            that they can be judged on rows they have not seen.
        bundle: All vectors are kept in one file of this name.
        beside: Folder beside the method's own -> what goes there; a vector of the same name as one
            of `vectors` is kept there only.
        report: What training found, JSON-like: shown, and kept in `training.json`.
        files: Name of a further file beside the vectors -> its JSON.
    """

    vectors: Vectors
    folds: list[tuple[Vectors, list[int]]] = field(default_factory=list)
    bundle: str | None = None
    beside: dict[str, Vectors] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    @property
    def own(self) -> Vectors:
        """The vectors that are kept in the method's own folder."""
        beside = {name for vectors in self.beside.values() for name in vectors}
        return Vectors(
            {name: vector for name, vector in self.vectors.items() if name not in beside},
            {name: known for name, known in self.vectors.about.items() if name not in beside},
        )


class Half(Protocol):
    """What all that make vectors share."""

    @property
    def folder(self) -> str:
        """Name of the folder that the vectors are kept in."""
        ...


class Trainer(Half, Protocol):
    """Makes vectors out of data."""

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """The vectors that `rows` teach; `model` is read unsteered."""
        ...


@runtime_checkable
class Maker(Half, Protocol):
    """Makes vectors out of other vectors or files: needs neither data nor a model."""

    def make(self, context: Context = ALONE) -> Trained:
        """The vectors that the settings describe."""
        ...


class Applier(Protocol):
    """Turns vectors into interventions."""

    def load(self, model: SteeredModel) -> Mapping[str, Any]:
        """The vectors on disk that it needs."""
        ...

    def interventions(self, model: SteeredModel, vectors: Mapping[str, Any]) -> list[Intervention]:
        """What to put in force on `model`."""
        ...


class Method(TypedDict):
    """A registry row; a method with nothing to learn has no `train`."""

    train: NotRequired[type[Trainer] | type[Maker]]
    apply: type[Applier]
