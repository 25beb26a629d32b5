"""Directional ablation (Arditi et al., 2024, https://arxiv.org/abs/2406.11717).

To ablate a refusal direction lowers a model's safeguards. It is here for red-teaming, and to
measure what such a direction does; answers and models of such runs are not to be deployed.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from steer.files import find
from steer.methods.activation_addition import StoredVectors
from steer.methods.contrastive import MeanDifferences
from steer.models import EditLayer, Intervention, ProjectOut, SteeredModel
from steer.vectors import Vectors, vector_names


@dataclass(kw_only=True)
class TrainAblate(MeanDifferences):
    """One direction a layer: the difference of the means (sec. 2.3), as long as it is."""

    kind = "ablate"


@dataclass(kw_only=True)
class AblateDirection(StoredVectors):
    """Project one direction out of block outputs, so that no later block reads it (sec. 2.4).

    The paper ablates what attention and MLP add as well; what they add to the residual stream is
    here removed at the end of their block.

    Attributes:
        layers: Decoder blocks whose output is edited, counted from 0. Every block where null.
        direction_layer: The layer that the direction was made at; may be left out where there is
            the vector of one layer only.
        amount: The share of what lies along the direction that is removed; 1 is all of it.
    """

    layers: list[int] | None = None
    direction_layer: int | None = None
    amount: float = 1.0

    def check(self) -> None:
        """Raise a ValueError where a value is not one that can be used."""
        self.where()
        self.check_gate()
        if self.layers is not None and (
            not self.layers or len(set(self.layers)) < len(self.layers)
        ):
            raise ValueError(f"layers must be different blocks, or null for all: got {self.layers}")
        if not math.isfinite(self.amount):
            raise ValueError(f"amount must be a finite number: got {self.amount}")

    def names(self) -> list[str]:
        """The name of the direction's vector; none where it is the one vector that there is."""
        return [] if self.direction_layer is None else [f"layer_{self.direction_layer}"]

    def load(self, model: SteeredModel) -> Vectors:
        """The direction in `steer_vector_load_dir`; errors as with other vectors."""
        if self.steer_vector_load_dir is None:
            return super().load(model)
        folder = find(self.steer_vector_load_dir, "vector folder")
        return super(AblateDirection, self._of(vector_names(folder))).load(model)

    def interventions(
        self, model: SteeredModel, vectors: Mapping[str, Tensor]
    ) -> list[Intervention]:
        """One `EditLayer` for each of `layers`.

        Raises:
            ValueError: A layer that the model does not have, no direction, or one of several.
        """
        self.check()
        chosen = self._of(vectors)
        chosen.check_vectors(model, vectors)
        (name,) = chosen.names()
        if not vectors[name].any():
            raise ValueError(f"vector {name} is 0 and has no direction: make it of other data")
        layers = range(model.depth) if self.layers is None else self.layers
        model.check_layers(layers)
        edit, where, gate = (
            ProjectOut(vectors[name], self.amount),
            self.where(),
            self.gate_of(model),
        )
        return [EditLayer(layer, edit, where, gate) for layer in layers]

    def _of(self, there: Iterable[str]) -> "AblateDirection":
        """The same with `direction_layer` named, where one of `there` is a layer's vector."""
        if self.direction_layer is not None:
            return self
        layers = [int(found[1]) for name in there if (found := re.fullmatch(r"layer_(\d+)", name))]
        if len(layers) != 1:
            raise ValueError(
                f"one direction is ablated, and there are {sorted(there)}: name its layer, e.g. "
                "direction_layer: 15"
            )
        return replace(self, direction_layer=layers[0])
