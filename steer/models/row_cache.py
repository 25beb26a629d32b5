"""Keys and values in tensors of a fixed size, each row's own tokens from its first column on."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from steer.models.column_cache import both


class RowLayer(DynamicLayer):
    """One block's part of a `RowCache`; `keys` and `values` are [rows, heads, columns, d].

    Attributes:
        lengths: [rows], int64, the cache's.
        rows: [rows], their numbers.
    """

    def __init__(self, like: DynamicLayer, columns: int, lengths: Tensor) -> None:
        super().__init__()
        rows = len(lengths)
        self.keys, self.values = (
            one.new_zeros(rows, one.shape[1], columns, one.shape[3]) for one in both(like)
        )
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True
        self.lengths, self.rows = lengths, torch.arange(rows, device=self.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write [rows, heads, 1, d] behind what each row has; all that there is, used or not."""
        keys, values = both(self)
        keys[self.rows, :, self.lengths] = key_states[:, :, 0]
        values[self.rows, :, self.lengths] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self) -> int:
        """Of no meaning here, and the same in every pass, as a graph asks for it."""
        return 0


class RowCache(Cache):
    """A cache that a compiled graph writes in place, of rows that come and go.

    Attributes:
        lengths: [rows], int64: tokens that each row has; 0 where a row is vacant.
    """

    def __init__(self, like: DynamicCache, columns: int, lengths: Tensor) -> None:
        """Room for `columns` tokens in each row, for a model that has filled `like`."""
        self.lengths = lengths
        self.own = [RowLayer(cast(DynamicLayer, one), columns, lengths) for one in like.layers]
        super().__init__(layers=[*self.own])

    def put(self, rows: Tensor, new: DynamicCache, lengths: Tensor) -> None:
        """Put the left-padded rows of `new`, of `lengths` tokens, into the vacant ones `rows`."""
        self.lengths[rows] = lengths
        width = int(lengths.max())
        columns = torch.arange(width, device=lengths.device)
        which = torch.arange(len(rows), device=rows.device)[:, None]
        for layer, one in zip(self.own, new.layers, strict=True):
            for kept, more in zip(both(layer), both(cast(DynamicLayer, one)), strict=True):
                # A window keeps its last columns only; nobody sees what stands before them.
                source = (more.shape[2] - lengths[:, None] + columns).clamp(0, more.shape[2] - 1)
                # Indexing puts the heads last: [rows, width, heads, d].
                kept[rows, :, :width] = more[which, :, source].transpose(1, 2)
                # A mask hides what rows before them left there, unless it is NaN.
                kept[rows, :, width:] = 0
