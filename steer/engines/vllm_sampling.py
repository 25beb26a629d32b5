"""transformers' generation settings in vLLM's words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import GenerationConfig

from steer.models.sampling import DEFAULT_TOP_K, WARPERS

# Parameters that mean the same here and there, or that have no meaning there.
KNOWN = (
    *("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
    *("max_new_tokens", "max_length", "min_new_tokens", "stop_strings", "eos_token_id"),
    *("pad_token_id", "bos_token_id", "use_cache", "transformers_version"),
)


def sampling_of(config: GenerationConfig, limit: int, seed: Sequence[int]) -> dict[str, Any]:
    """Arguments of vLLM's `SamplingParams`.

    Args:
        config: As `steer.models.sampling.generation_config` makes it.
        limit: Most new tokens.
        seed: The row's own. Its random numbers are vLLM's, so the answers are not those of
            transformers.

    Raises:
        ValueError: A parameter that vLLM does not know.
    """
    check_known(config)
    ends = config.eos_token_id
    stops = config.stop_strings
    return {
        "max_tokens": limit,
        "min_tokens": config.min_new_tokens or 0,
        "repetition_penalty": config.repetition_penalty or 1.0,
        "stop_token_ids": [ends] if isinstance(ends, int) else list(ends or ()),
        "stop": [stops] if isinstance(stops, str) else stops,
        "include_stop_str_in_output": True,
        "detokenize": bool(stops),
        **(_drawn(config, seed) if config.do_sample else {"temperature": 0.0}),
    }


def check_known(config: GenerationConfig) -> None:
    """Raise a ValueError where `config` says what vLLM has no word for."""
    told = {k: v for k, v in config.to_diff_dict().items() if v not in (None, False)}
    neutral = {name: value for name, (_, value) in WARPERS.items()}
    unknown = [k for k, v in told.items() if k not in KNOWN and v != neutral.get(k, object())]
    unknown = [k for k in unknown if not k.startswith("_")]
    if unknown:
        raise ValueError(
            f"generation parameters {', '.join(sorted(unknown))} are not known to the engine vllm: "
            "leave them out, or set engine: hf"
        )


def _drawn(config: GenerationConfig, seed: Sequence[int]) -> dict[str, Any]:
    top_k = DEFAULT_TOP_K if config.top_k is None else config.top_k
    return {
        "temperature": _or(config.temperature, 1.0),
        "top_p": _or(config.top_p, 1.0),
        "top_k": top_k,
        "min_p": _or(config.min_p, 0.0),
        "seed": int(np.random.SeedSequence(list(seed)).generate_state(1)[0]),
    }


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
