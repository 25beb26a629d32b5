"""The tokens with which all rows begin (a system prompt), read once instead of once a row."""

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from steer.models.steered_model import SteeredModel

# Below this a second pass costs more than it saves.
SHORTEST = 8


def common_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `rows` begin with."""
    return next(
        (n for n, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1),
        min(map(len, rows), default=0),
    )


def shared_length(rows: Sequence[Sequence[int]]) -> int:
    """`common_start`, or 0 where reading these tokens apart does not pay."""
    common = common_start(rows)
    return common if common >= SHORTEST and len(rows) > 1 else 0


def attention_span(model: SteeredModel) -> float:
    """Tokens that every block sees at once: its narrowest window, without one infinity.

    0 where a block keeps another state than keys and values (a recurrence). Windows count
    columns, padding included: padding behind a shared beginning is harmless only where nothing
    is longer than this.
    """
    layers = DynamicCache(config=model.model.config).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return 0
    windows = (n for layer in layers if (n := getattr(layer, "sliding_window", None)) is not None)
    return min(windows, default=math.inf)


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
    """A copy of a cache in which each row stands `rows` times; a pass may write to it."""
    if cache is None:
        return None
    own = copy.deepcopy(cache)
    own.batch_repeat_interleave(rows)
    return own


def rows_in(cache: DynamicCache) -> int:
    """How many rows a cache that has been written is of."""
    keys = cast(DynamicLayer, cache.layers[0]).keys
    assert keys is not None
    return len(keys)
