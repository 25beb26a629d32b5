"""The tokens with which all rows begin (a system prompt), read once instead of once a row."""

import copy
from collections.abc import Sequence
from os.path import commonprefix

import torch
from transformers import DynamicCache

from steer.models.steered_model import SteeredModel

# Below this a second pass costs more than it saves.
SHORTEST = 8


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `rows` begin with; 0 where reading them apart does not pay."""
    common = len(commonprefix([list(row) for row in rows]))
    return common if common >= SHORTEST and len(rows) > 1 else 0


@torch.inference_mode()
def prefix_cache(
    model: SteeredModel, ids: Sequence[int], layers: Sequence[int] | None = None
) -> DynamicCache | None:
    """Keys and values of `ids`, for the blocks up to the deepest of `layers`; None for no ids.

    Steered by what `steering()` holds open.
    """
    if not ids:
        return None
    cache = DynamicCache(config=model.model.config)
    inputs = {"input_ids": torch.tensor([list(ids)], device=model.device)}
    if layers is None:
        model.decoder(**inputs, past_key_values=cache, use_cache=True)
    else:
        model.read({**inputs, "past_key_values": cache}, layers)
    return cache


def repeated(cache: DynamicCache | None, rows: int) -> DynamicCache | None:
    """A copy of a one-row cache for a batch of `rows`; a pass may write to it."""
    if cache is None:
        return None
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own
