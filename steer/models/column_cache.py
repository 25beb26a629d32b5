"""Keys and values of a batch whose rows come and go, all of them written at one shared column."""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

# Columns kept free behind those in use: a quarter of them, and so many at least. Moving all
# columns when none is left then costs less than reading them a few times.
FEWEST_SPARE = 64


class ColumnLayer(DynamicLayer):
    """One block's part of a `ColumnCache`; `keys` and `values` are [rows, heads, columns, d].

    Attributes:
        cache: Says which rows and columns are in use.
        window: Columns that a token sees, itself included; None where it sees all.
    """

    def __init__(self, cache: "ColumnCache", window: int | None) -> None:
        super().__init__()
        self.cache, self.window = cache, window
        self.is_sliding = window is not None

    @property
    def seen(self) -> int:
        """Columns before the next one that it sees."""
        width = self.cache.width
        return width if self.window is None else min(width, self.window - 1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one column [rows, heads, 1, d]; views of all that it sees."""
        end, rows = self.cache.end, self.cache.used
        keys, values = both(self)
        keys[:rows, :, end : end + 1] = key_states
        values[:rows, :, end : end + 1] = value_states
        view = slice(end - self.seen, end + 1)
        return keys[:rows, :, view], values[:rows, :, view]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many columns the mask has, and which is the first of them."""
        return self.seen + query_length, self.cache.width - self.seen

    def get_seq_length(self) -> int:
        """Columns in use."""
        return self.cache.width

    def rebuild(self, like: tuple[Tensor, Tensor], rows: int, columns: int, end: int) -> None:
        """Make it `rows` x `columns` large; what is in use then ends before column `end`."""
        cache = self.cache
        new = [one.new_zeros(rows, one.shape[1], columns, one.shape[3]) for one in like]
        if self.is_initialized:
            for to, one in zip(new, both(self), strict=True):
                used = one[: cache.used, :, cache.end - cache.width : cache.end]
                to[: cache.used, :, end - cache.width : end] = used
        self.keys, self.values = new
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.is_initialized = True


class ColumnCache(Cache):
    """What a left-padded batch would have cached, with room to put other rows in.

    A row of n tokens has them in the n columns before `end`, in whatever order rows came: only
    the order and the distance of columns matter to attention, and positions are within the keys.
    So the attention mask is that of left padding, which every architecture understands.

    Attributes:
        own: Its layers.
        used: Rows in use, the first ones.
        width: Columns before `end` that some row uses.
        end: The column that the next pass writes.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        windows = [
            getattr(one, "sliding_window", None) for one in DynamicCache(config=config).layers
        ]
        self.own = [ColumnLayer(self, window) for window in windows]
        super().__init__(layers=[*self.own])
        self.used = self.width = self.end = self._rows = self._columns = 0

    def append(self, new: DynamicCache, width: int) -> None:
        """Take in the rows of `new`, left-padded to `width` columns, behind those in use."""
        given = [both(cast(DynamicLayer, one)) for one in new.layers]
        count = len(given[0][0])
        self._make_room(given, self.used + count, max(self.width, width))
        for layer, pair in zip(self.own, given, strict=True):
            for kept, more in zip(both(layer), pair, strict=True):
                rows = kept[self.used : self.used + count]
                first = self.end - more.shape[2]
                # A mask hides what rows before them left there, unless it is NaN.
                rows[:, :, :first] = 0
                rows[:, :, first : self.end] = more
        self.used += count
        self.width = max(self.width, width)

    def prepare(self) -> None:
        """Make sure that there is a column for the next pass."""
        self._make_room([both(one) for one in self.own], self.used, self.width)

    def _make_room(self, like: list[tuple[Tensor, Tensor]], rows: int, width: int) -> None:
        """Room for `rows` rows, for `width` columns before `end`, and for one at it."""
        if rows <= self._rows and width <= self.end < self._columns:
            return
        self._rows, self._columns = max(rows, self._rows), width + max(FEWEST_SPARE, width // 4)
        for layer, one in zip(self.own, like, strict=True):
            layer.rebuild(one, self._rows, self._columns, width)
        self.end = width

    def advance(self) -> None:
        """The pass is over: its column is one of those in use."""
        self.end += 1
        self.width += 1

    def remove(self, row: int, width: int) -> None:
        """Put the last row in place of `row`; `width` columns are in use from now on."""
        self.used -= 1
        if row != self.used:
            for layer in self.own:
                for kept in both(layer):
                    view = kept[:, :, self.end - self.width : self.end]
                    view[row] = view[self.used]
        self.width = width
        if not self.used:
            self.clear()

    def clear(self) -> None:
        """Give the memory back."""
        for layer in self.own:
            layer.reset()
        self.used = self.width = self.end = self._rows = self._columns = 0

    def mask(self, lengths: Tensor) -> Tensor:
        """[used, width + 1] attention mask of a pass in which each row, of `lengths`, gets one."""
        columns = torch.arange(-self.width, 1, device=lengths.device)
        return (columns >= -lengths[:, None]).long()


def both(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that has been used."""
    assert layer.keys is not None
    assert layer.values is not None
    return layer.keys, layer.values
