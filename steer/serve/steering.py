"""From what a request says to interventions, and from counts to what its answer says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steer.methods.activation_addition import AddVectors
from steer.models import EditLayer, SteeredModel
from steer.models.tally import Tally
from steer.report import basic_report
from steer.serve.errors import Refusal
from steer.serve.registry import Loaded, Registry
from steer.serve.schema import SteeringSpec, VectorUse
from steer.serve.settings import Limits


@dataclass(frozen=True, eq=False)
class Steering:
    """What one request is steered by.

    Attributes:
        edits: What is done; nothing where there are none.
        vectors: What the answer says of it.
    """

    edits: list[EditLayer]
    vectors: list[dict[str, Any]]

    def report(self, tally: Tally) -> dict[str, Any]:
        """What was done, for the answer.

        Raises:
            RuntimeError: A layer had tokens to steer and none of them changed.
        """
        # An answer may end before anything of it is read: nothing to steer is no failure.
        met = [e for e in self.edits if e.layer not in tally or tally[e.layer].summary()["tokens"]]
        layers = basic_report(tally, met).layers
        return {"vectors": self.vectors, "layers": {str(n): layers[n] for n in layers}}


def steering_of(
    spec: SteeringSpec, registry: Registry, model: SteeredModel, limits: Limits
) -> Steering:
    """The steering that a request asks for.

    Raises:
        Refusal: A vector that is not loaded, a layer that it does not have, or over a limit.
    """
    names = [use.name for use in spec.vectors]
    if len(names) > limits.max_vectors:
        raise _over("vectors", len(names), "max_vectors", limits.max_vectors)
    if len(set(names)) < len(names):
        # Else strengths of one vector could add up to more than is allowed.
        raise _wrong("vectors", "each vector may be named once")
    edits: list[EditLayer] = []
    vectors: list[dict[str, Any]] = []
    for number, use in enumerate(spec.vectors):
        field = f"vectors.{number}"
        if abs(use.strength) > limits.max_strength:
            raise _over(f"{field}.strength", use.strength, "max_strength", limits.max_strength)
        loaded = registry.get(use.name)
        layers = loaded.layers if use.layers is None else use.layers
        edits += _edits(use, loaded, layers, model, field)
        vectors.append({**use.model_dump(), "layers": layers})
    return Steering(edits, vectors)


def _edits(
    use: VectorUse, loaded: Loaded, layers: Sequence[int], model: SteeredModel, field: str
) -> list[EditLayer]:
    if wrong := [layer for layer in layers if layer not in loaded.layers]:
        raise _wrong(f"{field}.layers", f"{use.name} has the layers {loaded.layers}: got {wrong}")
    try:
        method = AddVectors(
            layers=list(layers),
            multipliers=[use.strength] * len(layers),
            operation=use.operation,
            positions=use.positions,
        )
    except ValueError as error:
        raise _wrong(field, str(error)) from error
    made = method.interventions(model, loaded.vectors)
    return [one for one in made if isinstance(one, EditLayer)]


def _wrong(field: str, message: str, code: str | None = None) -> Refusal:
    return Refusal(400, f"steering.{field}: {message}", param=f"steering.{field}", code=code)


def _over(field: str, value: float, limit: str, most: float) -> Refusal:
    return _wrong(field, f"{value} is over {limit}, {most}", "over_limit")
