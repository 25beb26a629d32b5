"""Sampling that gives each row its own random numbers, whatever batch it is in."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from steer.build import unknown

# In the order in which transformers applies them; each with the value that changes nothing.
WARPERS: dict[str, tuple[type[LogitsProcessor], float]] = {
    "temperature": (TemperatureLogitsWarper, 1.0),
    "top_k": (TopKLogitsWarper, 0),
    "top_p": (TopPLogitsWarper, 1.0),
    "min_p": (MinPLogitsWarper, 0.0),
    "typical_p": (TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (EpsilonLogitsWarper, 0.0),
    "eta_cutoff": (EtaLogitsWarper, 0.0),
}
FLAG = "true or false"
# transformers itself checks whether a number is in range, but trusts that it is one.
VALUES: tuple[tuple[str, tuple[type, ...], tuple[str, ...]], ...] = (
    (FLAG, (bool,), ("do_sample", "use_cache")),
    (
        "a whole number",
        (int,),
        ("max_new_tokens", "min_new_tokens", "max_length", "min_length", "num_beams", "top_k"),
    ),
    (
        "a number",
        (int, float),
        ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "length_penalty"),
    ),
    ("text or a list of texts", (str, list, tuple), ("stop_strings",)),
)
# What transformers uses where neither the user nor the model's own file says anything.
DEFAULT_TOP_K = 50


def generation_config(base: GenerationConfig | None, params: dict[str, Any]) -> GenerationConfig:
    """The model's own generation settings with `params` over them.

    Raises:
        ValueError: A parameter that `transformers`' `generate` does not have, or a value that it
            would not understand.
    """
    config = deepcopy(base) if base is not None else GenerationConfig()
    allowed = GenerationConfig().to_dict() | config.to_dict()
    for name, value in params.items():
        if name not in allowed:
            raise ValueError(unknown("generation parameter", name, allowed))
        kind, kinds = next(((k, t) for k, t, names in VALUES if name in names), ("", (object,)))
        # True is 1 to Python, but here it is a mistake.
        if value is not None and (not isinstance(value, kinds) or (value is True and kind != FLAG)):
            raise ValueError(f"generation parameter {name} must be {kind}: got {value!r}")
    if params.get("num_return_sequences") not in (None, 1):
        raise ValueError("num_return_sequences is not supported: use num_responses")
    config.update(**params)
    return config


class SeededSampling(LogitsProcessor):
    """Choose each row's next token with a generator of the row's own.

    Works inside greedy search: every score but the chosen token's becomes -inf. A row's numbers
    depend on its seed and step alone, so batch size and order do not change them; what is left of
    a batch's influence is the rounding of its logits.

    Attributes:
        seeds: One tuple of numbers a row, e.g. (seed, item, response).
        warpers: Temperature, top-k and so on, applied before choosing.
    """

    def __init__(self, seeds: Sequence[tuple[int, ...]], warpers: LogitsProcessorList) -> None:
        self.generators = [np.random.Generator(np.random.PCG64(seed)) for seed in seeds]
        self.warpers = warpers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [batch, vocab] that leave one token a row."""
        warped = self.warpers(input_ids, scores)
        # float64: a float32 running sum over a large vocabulary loses rare tokens.
        heights = warped.double().softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.tensor([[g.random()] for g in self.generators], dtype=torch.float64)
        goal = drawn.to(heights.device) * heights[:, -1:]
        token = torch.searchsorted(heights, goal, right=True)
        # Rounding must not choose a token that the warpers ruled out.
        last = warped.shape[-1] - 1 - warped.isfinite().flip(-1).int().argmax(-1, keepdim=True)
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, torch.minimum(token, last), 0.0)


def seeded(
    config: GenerationConfig, seeds: Sequence[tuple[int, ...]]
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """`config` turned to greedy search, and the processor that samples in it as `config` said."""
    config = deepcopy(config)
    warpers = LogitsProcessorList()
    for name, (warper, neutral) in WARPERS.items():
        value = getattr(config, name, None)
        if value is None and name == "top_k":
            value = DEFAULT_TOP_K
        if value is not None and value != neutral:
            warpers.append(warper(value))  # type: ignore[call-arg]
        setattr(config, name, None)
    config.do_sample = False
    return config, LogitsProcessorList([SeededSampling(seeds, warpers)])
