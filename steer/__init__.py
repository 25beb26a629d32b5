"""Steer language models: make vectors, apply them at run time, score what comes out.

Names are loaded at their first use, so that `import steer` is quick and needs neither torch nor
transformers.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer.applier import BaseVectorApplier
    from steer.datasets import (
        prepare_generation_datasets,
        prepare_train_dataset,
        prepare_train_datasets,
    )
    from steer.evaluate.evaluator import Evaluator
    from steer.generator import BaseVectorGenerator
    from steer.judging import effect_on, effects_on
    from steer.methods import METHODS_CLASS_DICT
    from steer.models import SteeredModel, build_model_input, generate
    from steer.models.load import ModelSource, get_model
    from steer.vectors import load_vectors, save_vectors

__version__ = "0.1.0"

_HOMES = {
    "BaseVectorApplier": "steer.applier",
    "BaseVectorGenerator": "steer.generator",
    "Evaluator": "steer.evaluate.evaluator",
    "METHODS_CLASS_DICT": "steer.methods",
    "ModelSource": "steer.models.load",
    "SteeredModel": "steer.models",
    "build_model_input": "steer.models",
    "effect_on": "steer.judging",
    "effects_on": "steer.judging",
    "generate": "steer.models",
    "get_model": "steer.models.load",
    "load_vectors": "steer.vectors",
    "prepare_generation_datasets": "steer.datasets",
    "prepare_train_dataset": "steer.datasets",
    "prepare_train_datasets": "steer.datasets",
    "save_vectors": "steer.vectors",
}

__all__ = [
    "METHODS_CLASS_DICT",
    "BaseVectorApplier",
    "BaseVectorGenerator",
    "Evaluator",
    "ModelSource",
    "SteeredModel",
    "build_model_input",
    "effect_on",
    "effects_on",
    "generate",
    "get_model",
    "load_vectors",
    "prepare_generation_datasets",
    "prepare_train_dataset",
    "prepare_train_datasets",
    "save_vectors",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'steer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
