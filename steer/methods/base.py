"""The two halves of a steering method.

A half is a dataclass: its fields are its YAML keys, its one method is its one job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, Protocol, TypedDict

from steer.datasets import Row
from steer.models import Intervention, SteeredModel
from steer.vectors import Vectors


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        vectors: By name, `layer_<n>`.
        about: What is known of each, for `metadata.json`: layer, tokens read, residual norm.
        folds: The vectors without each fold of the data, and the numbers of that fold's rows, so
            that they can be judged on rows they have not seen.
    """

    vectors: Vectors
    about: dict[str, dict[str, Any]]
    folds: list[tuple[Vectors, list[int]]] = field(default_factory=list)


class Trainer(Protocol):
    """Makes vectors out of data."""

    @property
    def folder(self) -> str:
        """Name of the folder that the vectors are kept in."""
        ...

    def train(self, model: SteeredModel, rows: Sequence[Row]) -> Trained:
        """The vectors that `rows` teach; `model` is read unsteered."""
        ...


class Applier(Protocol):
    """Turns vectors into interventions."""

    def load(self, model: SteeredModel) -> Vectors:
        """The vectors on disk that it needs."""
        ...

    def interventions(self, model: SteeredModel, vectors: Mapping[str, Any]) -> list[Intervention]:
        """What to put in force on `model`."""
        ...


class Method(TypedDict):
    """A registry row; a method with nothing to learn has no `train`."""

    train: NotRequired[type[Trainer]]
    apply: type[Applier]
