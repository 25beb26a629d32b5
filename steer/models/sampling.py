"""Sampling that gives each row its own random numbers, whatever batch it is in."""

import logging
from collections.abc import Mapping, Sequence
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
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from steer.build import unknown
from steer.models.positions import for_batch

log = logging.getLogger(__name__)

# In the order in which transformers applies them; each with the value that changes nothing.
WARPERS: dict[str, tuple[type[LogitsProcessor], float | None]] = {
    "temperature": (TemperatureLogitsWarper, 1.0),
    "top_h": (TopHLogitsWarper, None),
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
# What a greedy search is told: a value of transformers' own, so that it does not warn of ours.
QUIET = {"top_k": DEFAULT_TOP_K, "min_p": None}
# Parameter -> what it must be here, and what to do instead.
FIXED: dict[str, tuple[object, str]] = {
    "num_return_sequences": (1, "use num_responses"),
    "return_dict_in_generate": (False, "answers hold the tokens"),
    "min_length": (0, "use min_new_tokens"),
}


def generation_config(base: GenerationConfig | None, params: dict[str, Any]) -> GenerationConfig:
    """The model's own generation settings with `params` over them.

    Raises:
        ValueError: A parameter that `transformers`' `generate` does not have, a value that it would
            not understand, or a `FIXED` one.
    """
    config = deepcopy(base) if base is not None else GenerationConfig()
    if config.cache_implementation == "hybrid":
        # Files of Gemma's say so; transformers has had no such cache since, and drops it as well.
        config.cache_implementation = None
    known = [name for name in config.to_dict() if not name.startswith("_")]
    for name, value in params.items():
        _check_parameter(name, value, known)
    if params.get("do_sample", config.do_sample):
        config.update(**params)
        return config
    unused = [name for name in WARPERS if params.get(name) is not None]
    if unused:
        log.warning("%s has no effect without do_sample: true", ", ".join(unused))
    config.update(**{name: value for name, value in params.items() if name not in WARPERS})
    return _without_warpers(config)


def _check_parameter(name: str, value: object, known: list[str]) -> None:
    if name not in known:
        raise ValueError(unknown("generation parameter", name, known))
    kind, kinds = next(((k, t) for k, t, names in VALUES if name in names), (FLAG, (object,)))
    # True is 1 to Python, but here it is a mistake.
    if value is not None and (not isinstance(value, kinds) or (value is True and kind != FLAG)):
        raise ValueError(f"generation parameter {name} must be {kind}: got {value!r}")
    if name in FIXED and value not in (None, FIXED[name][0]):
        raise ValueError(f"{name} is not supported: {FIXED[name][1]}")


def _without_warpers(config: GenerationConfig) -> GenerationConfig:
    # Not simply None: transformers would put the model's own values in its place, and warn of them.
    for name, (_, neutral) in WARPERS.items():
        setattr(config, name, QUIET.get(name, neutral))
    return config


class PaddedPenalty(LogitsProcessor):
    """transformers' repetition penalty, blind to the padding on the left.

    Padding is not what a row said: there, a token of the row itself is shown instead.
    """

    def __init__(self, penalty: float, mask: Tensor) -> None:
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty)
        self.mask = mask.bool()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [batch, vocab] with those of the row's own tokens made smaller."""
        width = self.mask.shape[1]
        real = for_batch(self.mask, len(input_ids))
        said = input_ids[:, :width].where(real, input_ids[:, width - 1 : width])
        shown = torch.cat([said, input_ids[:, width:]], dim=1)
        return self.penalty(shown, scores)  # type: ignore[arg-type]


class SeededSampling(LogitsProcessor):
    """Choose each row's next token with a generator of the row's own.

    Works inside greedy search: every score but the chosen token's becomes -inf. A row's numbers
    depend on its seed and step alone, so batch size and order do not change them; what is left of
    a batch's influence is the rounding of its logits.

    Attributes:
        generators: Of each row.
        warpers: Temperature, top-k and so on, applied before choosing.
    """

    def __init__(
        self,
        seeds: Sequence[tuple[int, ...]],
        warpers: LogitsProcessorList,
        steps: Sequence[int] | None = None,
    ) -> None:
        """Begin at each row's first token, or behind so many `steps` of each.

        Args:
            seeds: One tuple of numbers a row, e.g. (seed, item, response).
            warpers: As above.
            steps: Tokens that each row has said already.
        """
        bits = [np.random.PCG64(seed) for seed in seeds]
        for one, said in zip(bits, steps or [], strict=False):
            one.advance(said)
        self.generators = [np.random.Generator(one) for one in bits]
        self.warpers = warpers

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [batch, vocab] that leave one token a row."""
        chosen = torch.full_like(scores, -torch.inf)
        return chosen.scatter_(1, self.choose(input_ids, scores)[:, None], 0.0)

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The next tokens [batch], given scores [batch, vocab]."""
        warped = self.warpers(input_ids, scores)  # type: ignore[arg-type]
        # float64: a float32 running sum over a large vocabulary loses rare tokens. Apple's GPUs
        # have none.
        exact = (warped.cpu() if warped.device.type == "mps" else warped).double()
        heights = exact.softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.tensor([[g.random()] for g in self.generators], dtype=torch.float64)
        goal = drawn.to(heights.device) * heights[:, -1:]
        token = torch.searchsorted(heights, goal, right=True)
        # Rounding must not choose a token that the warpers ruled out.
        last = warped.shape[-1] - 1 - warped.isfinite().flip(-1).int().argmax(-1, keepdim=True)
        return torch.minimum(token.to(last.device), last)[:, 0]


def warpers_of(config: GenerationConfig) -> dict[str, float]:
    """The warpers that `config` asks for, by name in the order of `WARPERS`, with their values."""
    found: dict[str, float] = {}
    for name, (_, neutral) in WARPERS.items():
        value = getattr(config, name, None)
        if value is None and name == "top_k":
            value = DEFAULT_TOP_K
        if value is not None and value != neutral:
            found[name] = value
    return found


def warping(values: Mapping[str, float]) -> LogitsProcessorList:
    """The processors of `warpers_of`."""
    made = [WARPERS[name][0](value) for name, value in values.items()]  # type: ignore[call-arg]
    return LogitsProcessorList(made)


def seeded(
    config: GenerationConfig, seeds: Sequence[tuple[int, ...]]
) -> tuple[GenerationConfig, SeededSampling]:
    """`config` turned to greedy search, and the processor that samples in it as `config` said."""
    config = deepcopy(config)
    sampling = SeededSampling(seeds, warping(warpers_of(config)))
    config.do_sample = False
    return _without_warpers(config), sampling
