"""The engines that a server may have."""

from collections.abc import Sequence

import torch

from steer.engines.of_run import EngineOfRun
from steer.engines.vllm import VLLMEngine
from steer.engines.vllm_requests import VLLMRequests
from steer.methods.activation_addition import OPERATIONS
from steer.models import EditLayer, SteeredModel
from steer.models.batching import fixed_size
from steer.models.continuous import ContinuousDecoder
from steer.models.generation import AUTO_BATCH
from steer.models.request import can_refill, unfollowed
from steer.models.sampling import generation_config
from steer.serve.engine import Engine
from steer.serve.settings import ServeSettings


def engine_of(settings: ServeSettings, model: SteeredModel) -> Engine:
    """The engine that the settings name.

    Raises:
        ValueError: It cannot serve this model.
        ModuleNotFoundError: It is not installed.
    """
    if own := unfollowed(generation_config(model.model.generation_config, {})):
        raise ValueError(
            f"the model's generation_config.json sets {', '.join(own)}, which no answer of a "
            "server could follow: take it out there"
        )
    return OverVLLM(settings, model) if settings.engine == "vllm" else _hf(settings, model)


def _hf(settings: ServeSettings, model: SteeredModel) -> Engine:
    if not can_refill(model):
        raise ValueError(
            f"{type(model.model).__name__} keeps more than keys and values, or prepares its "
            "inputs in a way of its own: its rows cannot take each other's places, which "
            "serving needs; set engine: vllm"
        )
    rows = fixed_size(settings.batch_size)
    size = rows or AUTO_BATCH.get(model.device.type, AUTO_BATCH["cpu"])
    return Engine(model, ContinuousDecoder(model, size, fixed=rows is not None, apart=True))


class OverVLLM(Engine):
    """Answers with vLLM, which keeps counts of each steering, not of each answer.

    Args:
        settings: How vLLM is started.
        model: The model without its weights.
    """

    counts_apart = False

    def __init__(self, settings: ServeSettings, model: SteeredModel) -> None:
        # vLLM's graphs are made before any vector is known: every block must be able to do what
        # requests may ask for.
        needed = [
            [EditLayer(layer, kind(torch.ones(model.d_model))) for layer in range(model.depth)]
            for kind in OPERATIONS.values()
        ]
        self.of_run = EngineOfRun(settings, settings.source, model)
        started = self.of_run.ready_for(needed)
        assert isinstance(started, VLLMEngine)
        from vllm.v1.engine.exceptions import EngineDeadError

        self.fatal = (EngineDeadError,)
        self.requests = VLLMRequests(started)
        super().__init__(model, self.requests)

    @property
    def window(self) -> int:
        """Tokens that vLLM was started for."""
        return self.requests.engine.llm.llm_engine.model_config.max_model_len

    def check(self, edits: Sequence[EditLayer]) -> None:
        """Raise a ValueError for steering that vLLM was not started for."""
        self.requests.check([*edits])

    async def close(self) -> None:
        """End vLLM's processes too."""
        await super().close()
        self.of_run.close()
