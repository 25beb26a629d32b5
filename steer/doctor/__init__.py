"""Why does nothing happen? Every check of a steering set-up, in the order of a run."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from steer.doctor import (
    data,
    environment,
    interference,
    model_files,
    network,
    place,
    steering,
    vector_files,
)
from steer.doctor.base import Result, failure, refused, unchecked
from steer.doctor.patient import Patient
from steer.models import SteeredModel
from steer.settings import Run

__all__ = ["CHECKS", "SETTINGS", "Check", "Result", "diagnose", "examine"]

# What a config that cannot be read is found by, in place of every check.
SETTINGS = "settings"
NOTHING, MODEL, STEPS = 0, 1, 2


@dataclass(frozen=True)
class Check:
    """A check, and what it needs.

    Attributes:
        run: Yields what it finds.
        needs: `MODEL`, a model that was loaded; `STEPS`, vectors too; or `NOTHING`.
    """

    run: Callable[[Patient], Iterator[Result]]
    needs: int = STEPS


CHECKS: dict[str, Check] = {
    "versions": Check(environment.versions, NOTHING),
    "model": Check(model_files.model, NOTHING),
    "device": Check(environment.device, MODEL),
    "tokenizer": Check(model_files.tokenizer, MODEL),
    "padding": Check(model_files.padding, MODEL),
    "chat template": Check(model_files.template, MODEL),
    "language": Check(model_files.language, MODEL),
    "layer layout": Check(network.layout, MODEL),
    "other hooks": Check(network.foreign_hooks, MODEL),
    "vector files": Check(vector_files.files, MODEL),
    "vector fits model": Check(vector_files.fit, MODEL),
    "vector fits text": Check(vector_files.same_text, MODEL),
    "vectors": Check(vector_files.load, MODEL),
    "numbers": Check(network.numbers, MODEL),
    "batches": Check(network.batches, MODEL),
    "strength": Check(steering.strength),
    "strength 0": Check(steering.zero),
    "hooks fire": Check(steering.fires),
    "dose": Check(steering.dose),
    "gate": Check(steering.gate),
    "sign": Check(steering.sign),
    "vector fits layer": Check(place.place),
    "stale vectors": Check(steering.stale, MODEL),
    "interference": Check(interference.interference),
    "data": Check(data.pairs, NOTHING),
    "inputs": Check(data.inputs, MODEL),
}


def diagnose(cfg: Any, model: SteeredModel | None = None) -> list[Result]:
    """What every check finds, in the order of `CHECKS`.

    Args:
        cfg: The top-level config of an applying run: from Hydra, a mapping, or a path to YAML.
        model: Examined instead of loading the one that `cfg` names.
    """
    try:
        run = Run.of(cfg, "apply")
    except (ValueError, OSError) as error:
        found = refused(error, "mend the config: nothing can be run with it, and no check was made")
        return [replace(found, check=SETTINGS)]
    return examine(run, model)


def examine(run: Run, model: SteeredModel | None = None) -> list[Result]:
    """The same of settings that were read."""
    patient = Patient(run, model)
    return [replace(found, check=name) for name in CHECKS for found in _results(name, patient)]


def _results(name: str, patient: Patient) -> list[Result]:
    check = CHECKS[name]
    if check.needs >= MODEL and patient.model is None:
        return [unchecked("the model was not loaded")]
    if check.needs >= STEPS and patient.steps is None:
        return [unchecked("the vectors were not loaded")]
    try:
        return list(check.run(patient))
    except (ValueError, RuntimeError, OSError) as error:
        what = f"the check broke down: {type(error).__name__}: {error}"
        return [failure(what, "mend what the message names; what runs needs the same")]
