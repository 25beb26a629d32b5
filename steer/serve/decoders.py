"""The engines that a server may have."""

from collections.abc import Sequence

import torch

from steer.engines.of_run import EngineOfRun
from steer.methods.activation_addition import OPERATIONS
from steer.models import EditLayer, SteeredModel
from steer.models.batching import fixed_size
from steer.models.continuous import ContinuousDecoder
from steer.models.generation import AUTO_BATCH
from steer.models.request import can_refill
from steer.serve.engine import Engine
from steer.serve.settings import ServeSettings


def engine_of(settings: ServeSettings, model: SteeredModel) -> Engine:
    """The engine that the settings name.

    Raises:
        ValueError: It cannot serve this model.
        ModuleNotFoundError: It is not installed.
    """
    return _vllm(settings, model) if settings.engine == "vllm" else _hf(settings, model)


def _hf(settings: ServeSettings, model: SteeredModel) -> Engine:
    if not can_refill(model):
        raise ValueError(
            f"{type(model.model).__name__} keeps more than keys and values, or prepares its "
            "inputs in a way of its own: its rows cannot take each other's places, which "
            "serving needs; set engine: vllm"
        )
    rows = fixed_size(settings.batch_size)
    size = rows or AUTO_BATCH.get(model.device.type, AUTO_BATCH["cpu"])
    decoder = ContinuousDecoder(model, size, fixed=rows is not None, apart=True)
    return Engine(model, decoder, counts_apart=True, check=_anything)


def _anything(_: Sequence[EditLayer]) -> None:
    """Hooks do every edit."""


def _vllm(settings: ServeSettings, model: SteeredModel) -> Engine:
    # vLLM's graphs are made before any vector is known: every block must be able to do what
    # requests may ask for.
    started = EngineOfRun(settings, settings.source, model).ready_for(
        [
            [EditLayer(layer, kind(torch.ones(model.d_model))) for layer in range(model.depth)]
            for kind in OPERATIONS.values()
        ]
    )
    assert started is not None
    from steer.engines.vllm_requests import VLLMRequests

    requests = VLLMRequests(started)
    return Engine(model, requests, counts_apart=False, check=lambda edits: requests.check([*edits]))
