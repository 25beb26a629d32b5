"""transformers' generation settings in vLLM's words."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import GenerationConfig

from steer.models.request import Manner
from steer.models.sampling import WARPERS, warpers_of

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
        **_drawn(warpers_of(config) if config.do_sample else None, seed),
    }


def sampling_for(manner: Manner, limit: int, seed: Sequence[int]) -> dict[str, Any]:
    """The same for a request whose answer's text, and stop strings in it, are seen to elsewhere.

    Args:
        manner: How its tokens are chosen.
        limit: As for `sampling_of`.
        seed: As there.
    """
    return {
        "max_tokens": limit,
        "min_tokens": manner.min_new,
        "repetition_penalty": manner.penalty,
        "stop_token_ids": sorted(manner.ends.tokens),
        "detokenize": False,
        **_drawn(manner.warpers, seed),
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


def _drawn(warpers: Mapping[str, float] | None, seed: Sequence[int]) -> dict[str, Any]:
    """Arguments for sampling as `warpers_of` has it; for greedy search where None."""
    if warpers is None:
        return {"temperature": 0.0}
    return {
        "temperature": warpers.get("temperature", 1.0),
        "top_p": warpers.get("top_p", 1.0),
        "top_k": int(warpers.get("top_k", 0)),
        "min_p": warpers.get("min_p", 0.0),
        "seed": int(np.random.SeedSequence(list(seed)).generate_state(1)[0]),
    }
