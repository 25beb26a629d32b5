"""Which engine answers, and how vLLM is started."""

from dataclasses import dataclass, field, fields
from typing import Any

from steer.build import check_value, pick

ENGINES = ("hf", "vllm")
# What vLLM must not be told, because steering depends on it.
OURS = ("model", "worker_cls", "additional_config", "speculative_config", "dtype", "tokenizer")


@dataclass(kw_only=True)
class EngineOptions:
    """The engine of a run; what begins with `vllm_` is vLLM's.

    Attributes:
        engine: `hf` (transformers), or `vllm`, which answers at serving speed and needs the extra
            `vllm`. Vectors are made by `hf` in any case.
        compile: Whether `hf` answers with compiled steps: pays on a GPU, and for long lists.
        vllm_enable: EasyEdit2's spelling of `engine: vllm`.
        vllm_enforce_eager: Whether vLLM neither compiles nor captures graphs: starts sooner.
        vllm_gpu_memory_utilization: Share of a GPU's memory that vLLM takes; its default where
            null.
        vllm_max_model_len: Longest prompt and answer, in tokens; the model's own where null.
        vllm_tensor_parallel_size: Over how many GPUs each layer is split.
        vllm_pipeline_parallel_size: Over how many the layers are shared out.
        vllm_data_parallel_size: How many engines, each with the whole model, share the prompts.
        vllm_slots: Recipes that one batch can mix, and one for what is not steered.
        vllm_params: More for vLLM's `EngineArgs`.
    """

    engine: str = "hf"
    compile: bool = False
    vllm_enable: bool = False
    vllm_enforce_eager: bool = False
    vllm_gpu_memory_utilization: float | None = None
    vllm_max_model_len: int | None = None
    vllm_tensor_parallel_size: int = 1
    vllm_pipeline_parallel_size: int = 1
    vllm_data_parallel_size: int = 1
    vllm_slots: int = 65
    vllm_params: dict[str, Any] = field(default_factory=dict)

    def check_engine(self) -> None:
        """Raise a ValueError where values are none that vLLM, or steering in it, can do."""
        if self.vllm_enable:
            self.engine = "vllm"
        pick("engine", self.engine, dict.fromkeys(ENGINES))
        if self.compile and self.engine == "vllm":
            raise ValueError(
                "compile is for engine: hf, and vLLM compiles by itself: set compile: false"
            )
        for name in ("tensor", "pipeline", "data"):
            size = f"vllm_{name}_parallel_size"
            check_value(size, getattr(self, size), "1 or more", getattr(self, size) >= 1)
        check_value("vllm_slots", self.vllm_slots, "2 or more", self.vllm_slots >= 2)
        share = self.vllm_gpu_memory_utilization
        check_value(
            *("vllm_gpu_memory_utilization", share, "above 0 and up to 1, or null"),
            share is None or 0 < share <= 1,
        )
        if taken := sorted(set(self.vllm_params) & set(OURS)):
            raise ValueError(f"vllm_params must leave {', '.join(taken)} to steering")
        own = {f.name for f in fields(EngineOptions)}
        if named := sorted(name for name in self.vllm_params if f"vllm_{name}" in own):
            raise ValueError(
                f"vllm_params names {', '.join(named)}: set {', '.join(f'vllm_{n}' for n in named)}"
            )

    @property
    def gpus(self) -> int:
        """That one engine takes."""
        return self.vllm_tensor_parallel_size * self.vllm_pipeline_parallel_size

    def engine_args(self) -> dict[str, Any]:
        """For vLLM's `EngineArgs`."""
        named = {
            "enforce_eager": self.vllm_enforce_eager,
            "gpu_memory_utilization": self.vllm_gpu_memory_utilization,
            "max_model_len": self.vllm_max_model_len,
            "tensor_parallel_size": self.vllm_tensor_parallel_size,
            "pipeline_parallel_size": self.vllm_pipeline_parallel_size,
        }
        return {k: v for k, v in named.items() if v is not None} | self.vllm_params
