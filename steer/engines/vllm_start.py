"""How vLLM is started, so that it can steer."""

import os
from collections.abc import Mapping
from typing import Any

from steer.engines.options import EngineOptions
from steer.engines.recipes import HEAD
from steer.models.slots import Layout

WORKER = "steer.engines.vllm_worker.SteeringWorker"
# The key of vllm_worker, which only vLLM's processes import.
CONFIG = "steer"
ENVIRONMENT = {
    # GiB; without them vLLM on a CPU takes what is there.
    "VLLM_CPU_KVCACHE_SPACE": "2",
    # A hundred lines at every start hide what a run says; errors are shown.
    "VLLM_LOGGING_LEVEL": "ERROR",
}
UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def start_vllm(
    path: str, dtype: str, layout: Layout, options: EngineOptions, read: Mapping[str, Any]
) -> Any:
    """A vLLM of the weights at `path` whose workers can do what `layout` says.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """
    # Processes that each bind their threads to the same cores of a CPU would wait for each other.
    several = options.gpus * options.vllm_data_parallel_size > 1
    for name, value in (ENVIRONMENT | (UNBOUND if several else {})).items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModuleNotFoundError(
            f"engine: vllm needs vLLM ({error}): install the extra vllm, or set engine: hf"
        ) from error
    stages = {str(place): stages for place, stages in layout.items() if place not in HEAD}
    steering = {
        "slots": options.vllm_slots,
        "stages": stages,
        "head": any(place in HEAD for place in layout),
    }
    return LLM(
        model=path,
        dtype=dtype,  # type: ignore[arg-type]
        worker_cls=WORKER,
        additional_config={CONFIG: steering},
        use_tqdm_on_load=False,
        **{**read, "tokenizer_revision": read.get("revision"), **options.engine_args()},
    )
