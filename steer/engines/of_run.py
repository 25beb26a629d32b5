"""The engine of a run: started when it is first needed, anew when more is asked of it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steer.engines.options import EngineOptions
from steer.engines.recipes import Recipe, layout_of
from steer.engines.replicas import Replicas
from steer.engines.vllm import VLLMEngine
from steer.engines.vllm_sampling import check_known
from steer.models import SteeredModel
from steer.models.generation import settings_of
from steer.models.load import ModelSource
from steer.models.slots import joined

log = logging.getLogger(__name__)


class EngineOfRun:
    """vLLM where the options ask for it; nothing where transformers answers itself.

    Args:
        options: Which engine, and how it is started.
        source: The model.
        model: The same in transformers, for its tokenizer; on a GPU its weights make room.

    Raises:
        ValueError: vLLM is asked for, of a model that it cannot be given.
    """

    def __init__(self, options: EngineOptions, source: ModelSource, model: SteeredModel) -> None:
        self.options, self.source, self.model = options, source, model
        self.started: VLLMEngine | Replicas | None = None
        if self.is_vllm:
            _refuse_what_vllm_does_otherwise(source)

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM answers."""
        return self.options.engine == "vllm"

    def ready_for(
        self, recipes: Sequence[Recipe], params: Mapping[str, Any] | None = None
    ) -> VLLMEngine | Replicas | None:
        """The engine, able to do `recipes`; None where transformers answers itself.

        Raises:
            ValueError: Generation parameters `params` that vLLM does not know.
        """
        if not self.is_vllm:
            return None
        # Before it is started, which takes a minute and more.
        check_known(settings_of(self.model, [], dict(params or {}))[0])
        if self.started is not None and all(map(self.started.fits, recipes)):
            return self.started
        layout = layout_of(recipes)
        if self.started is not None:
            log.warning("vLLM starts again: its graphs were made without what is to be done now")
            layout = joined(self.started.layout, layout)
            self.close()
        self._make_room()
        path, _ = self.source.place()
        dtype = str(self.model.model.dtype).removeprefix("torch.")

        def start() -> VLLMEngine:
            return VLLMEngine(self.model, str(path), dtype, layout, self.options)

        number = self.options.vllm_data_parallel_size
        self.started = start() if number == 1 else Replicas(start, number, self.options.gpus)
        return self.started

    def close(self) -> None:
        """End vLLM's processes."""
        if self.started is not None:
            self.started.close()
            self.started = None

    def _make_room(self) -> None:
        if self.model.device.type == "cuda":
            self.model.model.to(torch.device("cpu"))  # type: ignore[arg-type]
            torch.cuda.empty_cache()


def model_for(options: EngineOptions, source: ModelSource, *, weights: bool) -> SteeredModel:
    """The model in transformers; without its weights where vLLM answers, unless they are needed."""
    return source.load() if weights or options.engine == "hf" else source.structure()


def _refuse_what_vllm_does_otherwise(source: ModelSource) -> None:
    asked = {
        "device_map": source.device_map is not None,
        "load_in_8bit": source.load_in_8bit,
        "load_in_4bit": source.load_in_4bit,
        "model_kwargs": bool(source.model_kwargs),
        "a .gguf file as model_name_or_path": source.model_name_or_path.endswith(".gguf"),
    }
    if given := [name for name, is_given in asked.items() if is_given]:
        raise ValueError(
            f"engine: vllm does not take {', '.join(given)}: use vllm_tensor_parallel_size, "
            "vllm_pipeline_parallel_size or vllm_params (quantization=...), or set engine: hf"
        )
