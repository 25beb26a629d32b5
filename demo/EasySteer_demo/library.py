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


@dataclass(frozen=True)
class ReadyVector:
    """A vector that fits the model.

    Attributes:
        name: For visitors.
        method: Its row in METHODS_CLASS_DICT.
        folder: Where it is.
        layers: Those that there are vectors for.
        about: What is known of each of these.
    """

    name: str
    method: str
    folder: Path
    layers: list[int]
    about: Mapping[int, Mapping[str, Any]]


def ready_vectors(model: SteeredModel, places: Sequence[str]) -> dict[str, ReadyVector]:
    """The vectors below `places` that can be added to this model's activations, by name.

    Raises:
        FileNotFoundError: One of `places` is not there.
    """
    facts, found = model_facts(model), {}
    for root in (find(place, "vector folder") for place in places):
        for path in sorted(root.rglob("metadata.json")):
            ready = _ready(path.parent, root, facts)
            if ready is not None:
                found.setdefault(ready.name, ready)
    return found


def _ready(folder: Path, root: Path, facts: Mapping[str, Any]) -> ReadyVector | None:
    try:
        entries = (read_metadata(folder) or {}).get("vectors", {})
    except ValueError as error:
        log.warning("left out: %s", error)
        return None
    fitting = {e["layer"]: e for name, e in entries.items() if _fits(name, e, facts)}
    methods = {entry["method"] for entry in fitting.values()}
    if len(methods) != 1:
        return None
    name = " / ".join(folder.relative_to(root).parts).replace("_", " ")
    ordered = dict(sorted(fitting.items()))
    return ReadyVector(name, methods.pop(), folder, list(ordered), ordered)


def _fits(name: str, entry: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    layer, row = entry.get("layer"), METHODS_CLASS_DICT.get(str(entry.get("method")))
    if not isinstance(layer, int) or row is None or not issubclass(row["apply"], AddVectors):
        return False
    named = row["apply"](layers=[layer], multipliers=[1.0]).names() == [name]
    fits = entry.get("shape") == [facts["hidden_size"]] and disagreement(entry, facts) is None
    return named and fits
