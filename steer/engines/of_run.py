"""The engine of a run: started when it is first needed, anew when more is asked of it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from steer.engines.compiled import CompiledEngine, check_followed, layout_for
from steer.engines.options import EngineOptions
from steer.engines.recipes import Recipe, layout_of
from steer.engines.replicas import Replicas
from steer.engines.vllm import VLLMEngine
from steer.engines.vllm_sampling import check_known
from steer.models import SteeredModel
from steer.models.compiled import check_can_compile
from steer.models.generation import settings_of
from steer.models.load import ModelSource
from steer.models.slots import Layout, joined

log = logging.getLogger(__name__)

AnyEngine = VLLMEngine | Replicas | CompiledEngine


class EngineOfRun:
    """vLLM or compiled steps where the options ask for it; else transformers answers itself.

    Args:
        options: Which engine, and how it is started.
        source: The model.
        model: The same in transformers; on a GPU its weights make room for vLLM.
        batch_size: Rows of a compiled step.

    Raises:
        ValueError: What is asked for is not possible with this model.
    """

    def __init__(
        self,
        options: EngineOptions,
        source: ModelSource,
        model: SteeredModel,
        batch_size: int | str = "auto",
    ) -> None:
        self.options, self.source, self.model = options, source, model
        self.batch_size = batch_size
        self.started: AnyEngine | None = None
        if self.is_vllm:
            _refuse_what_vllm_does_otherwise(source)
        elif options.compile:
            check_can_compile(model)

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM answers."""
        return self.options.engine == "vllm"

    def ready_for(
        self, recipes: Sequence[Recipe], params: Mapping[str, Any] | None = None
    ) -> AnyEngine | None:
        """The engine, able to do `recipes`; None where transformers answers itself.

        Raises:
            ValueError: Generation parameters `params` that the engine does not know.
        """
        if not self.is_vllm and not self.options.compile:
            return None
        # Before it is started, which takes a minute and more.
        config, _ = settings_of(self.model, [], dict(params or {}))
        if self.is_vllm:
            check_known(config)
        else:
            check_followed(config)
        if self.started is not None and all(map(self.started.fits, recipes)):
            return self.started
        layout = layout_of(recipes) if self.is_vllm else layout_for(recipes, self.model.depth)
        if self.started is not None:
            log.warning("graphs are made again: they were made without what is to be done now")
            layout = joined(self.started.layout, layout)
            self.close()
        self.started = self._vllm(layout) if self.is_vllm else self._compiled(layout)
        return self.started

    def scoring(self) -> VLLMEngine | Replicas | None:
        """What scores answers; None where transformers does, which is not compiled for that."""
        engine = self.ready_for([]) if self.is_vllm else None
        return None if isinstance(engine, CompiledEngine) else engine

    def _compiled(self, layout: Layout) -> CompiledEngine:
        return CompiledEngine(self.model, layout, batch_size=self.batch_size)

    def _vllm(self, layout: Layout) -> VLLMEngine | Replicas:
        self._make_room()
        path, read = self.source.place()
        dtype = str(self.model.model.dtype).removeprefix("torch.")

        def start() -> VLLMEngine:
            return VLLMEngine(self.model, str(path), dtype, layout, self.options, read)

        number = self.options.vllm_data_parallel_size
        return start() if number == 1 else Replicas(start, number, self.options.gpus)

    def close(self) -> None:
        """End vLLM's processes, and forget graphs."""
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
