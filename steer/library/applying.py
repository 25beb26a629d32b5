"""From a vector with a recommended dose to what it does to a model."""

from collections.abc import Mapping
from typing import Any

from steer.methods import METHODS_CLASS_DICT
from steer.models import Intervention, SteeredModel
from steer.models.facts import model_facts
from steer.vectors import Entry, Vectors


def steering_of(entry: Entry, model: SteeredModel) -> list[Intervention]:
    """What an entry of the library does to `model`, at the dose that was chosen for it.

    Raises:
        ValueError: It recommends no dose, its files are not whole, or it is of another model.
    """
    values = entry.facts.get("recommended")
    if not values:
        raise ValueError(
            f"{entry.folder} recommends no dose: search for one (python -m steer.search), or name "
            "its strength in a method file"
        )
    vectors = entry.load(model_facts(model))
    return applied(model, entry.facts["method"], values, vectors)


def applied(
    model: SteeredModel, method: str, values: Mapping[str, Any], vectors: Vectors
) -> list[Intervention]:
    """What `vectors` do to `model`, applied as a method file of these values would."""
    half: Any = METHODS_CLASS_DICT[method]["apply"]
    return half(**values).interventions(model, vectors)
