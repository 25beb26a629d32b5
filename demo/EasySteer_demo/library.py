"""Ready vectors: found by what their metadata says, whoever made them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.files import find
from steer.methods import METHODS_CLASS_DICT
from steer.methods.activation_addition import AddVectors
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.vectors import disagreement, read_metadata

log = logging.getLogger(__name__)

METADATA = "metadata.json"

# Of a vector that nobody has found a dose for.
USUAL = 2.0


@dataclass(frozen=True)
class ReadyVector:
    """A vector that fits the model.

    Attributes:
        method: Its row in METHODS_CLASS_DICT.
        folder: Where it is.
        about: Layer -> what is known of the vector for it.
    """

    method: str
    folder: Path
    about: Mapping[int, Mapping[str, Any]]

    @property
    def layers(self) -> list[int]:
        """Those that there are vectors for."""
        return list(self.about)

    @property
    def name(self) -> str:
        """For visitors: what it is of, and what it does or was made of."""
        facts = next(iter(self.about.values()))
        data = facts.get("data")
        made = f"{self.method} of {data['rows']} pairs" if data else self.method
        return f"{self.folder.parent.name}: {facts.get('does', made)}"

    def usual_strength(self, layer: int) -> float:
        """The multiplier that its metadata recommends."""
        facts = self.about[layer]
        told = facts.get("recommended") or {}
        doses = dict(zip(told.get("layers", ()), told.get("multipliers", ()), strict=False))
        if told.get("strength") == "relative" and layer in doses:
            return round(doses[layer] * facts["residual_norm"] / facts["norm"], 2)
        return doses.get(layer, USUAL)


def ready_vectors(model: SteeredModel, places: Sequence[str]) -> dict[str, ReadyVector]:
    """The vectors below `places` that can be added to this model's activations, by name.

    Raises:
        FileNotFoundError: One of `places` is not there.
    """
    facts = model_facts(model)
    found: dict[str, ReadyVector] = {}
    for root in (find(place, "vector folder") for place in places):
        for path in sorted(root.rglob(METADATA)):
            ready = _ready(path.parent, facts)
            if ready is not None:
                taken = ready.name in found
                place = f" ({path.parent.relative_to(root).as_posix()})" if taken else ""
                found[ready.name + place] = ready
    return found


def _ready(folder: Path, facts: Mapping[str, Any]) -> ReadyVector | None:
    try:
        entries = (read_metadata(folder) or {}).get("vectors", {})
    except ValueError as error:
        log.warning("left out: %s", error)
        return None
    fitting = {e["layer"]: e for name, e in entries.items() if _fits(name, e, facts)}
    methods = {entry["method"] for entry in fitting.values()}
    return ReadyVector(methods.pop(), folder, dict(sorted(fitting.items()))) if methods else None


def _fits(name: str, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    layer, row = entry.get("layer"), METHODS_CLASS_DICT.get(str(entry.get("method")))
    if not isinstance(layer, int) or row is None or not issubclass(row["apply"], AddVectors):
        return False
    named = row["apply"](layers=[layer], multipliers=[1.0]).names() == [name]
    fits = entry.get("shape") == [facts["hidden_size"]] and disagreement(entry, facts) is None
    return named and fits
