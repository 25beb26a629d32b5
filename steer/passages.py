"""Mean activations of passages of text.

Passes are batched, rows of like length together; each stops behind the deepest layer that is
read, and neither the head nor a gradient is computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from steer.models import SteeredModel
from steer.models.batching import padded, run_passes
from steer.models.prefix import attention_span, prefix_cache, repeated, shared_length
from steer.models.tally import SINK_FACTOR

# Tokens that are encoded at once: more would fill memory, n numbers a token, and gain nothing.
ENCODED_TOKENS = 1024

# Activations [tokens, d_model] -> [tokens, n].
Encode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Passage:
    """A token sequence and the part of it that is averaged.

    Attributes:
        ids: The tokens.
        start: First token that is read.
        stop: The one behind the last.
    """

    ids: Sequence[int]
    start: int
    stop: int


class Batch(NamedTuple):
    """What one pass read.

    Attributes:
        rows: The numbers of its passages.
        means: Layer -> [batch, d_model], mean activations.
        norms: Layer -> [batch], median norms of what was read, attention sinks left out.
        encoded: Layer -> [batch, n], means of what the layer's encoder makes of each token.
    """

    rows: list[int]
    means: dict[int, Tensor]
    norms: dict[int, Tensor]
    encoded: dict[int, Tensor]


# A passage -> layer -> its mean activation [d_model] and its median norm.
Readings = dict[tuple[tuple[int, ...], int, int], dict[int, tuple[Tensor, Tensor]]]
_readings: ContextVar[Readings | None] = ContextVar("readings", default=None)


@contextmanager
def remembered_readings() -> Iterator[None]:
    """While open, no passage is read twice at one layer, whoever asks: for one unsteered model.

    What encoders make of passages is not kept.
    """
    token = _readings.set({})
    try:
        yield
    finally:
        _readings.reset(token)


def passage_means(
    model: SteeredModel,
    passages: Sequence[Passage],
    layers: Sequence[int],
    batch_size: int | str = "auto",
    encoders: Mapping[int, Encode] | None = None,
) -> Iterator[Batch]:
    """What is read of each passage, a batch at a time; arguments as for `contrast`."""
    readings = _readings.get()
    if readings is None or encoders:
        yield from _read(model, passages, layers, batch_size, encoders)
        return
    keys = [(tuple(one.ids), one.start, one.stop) for one in passages]
    fresh = {k: p for k, p in zip(keys, passages, strict=True) if _lacks(readings, k, layers)}
    names = list(fresh)
    for batch in _read(model, list(fresh.values()), layers, batch_size) if fresh else ():
        for place, row in enumerate(batch.rows):
            pairs = {n: (batch.means[n][place].cpu(), batch.norms[n][place].cpu()) for n in layers}
            readings.setdefault(names[row], {}).update(pairs)
    sides = [{n: [readings[key][n][side] for key in keys] for n in layers} for side in (0, 1)]
    means, norms = ({n: torch.stack(each) for n, each in side.items()} for side in sides)
    yield Batch(list(range(len(passages))), means, norms, {})


def _lacks(
    readings: Readings, key: tuple[tuple[int, ...], int, int], layers: Sequence[int]
) -> bool:
    return any(layer not in readings.get(key, {}) for layer in layers)


def _read(
    model: SteeredModel,
    passages: Sequence[Passage],
    layers: Sequence[int],
    batch_size: int | str,
    encoders: Mapping[int, Encode] | None = None,
) -> Iterator[Batch]:
    starts = [passage.ids[: passage.start] for passage in passages]
    prefix = shared_length(starts) if attention_span(model) else 0
    cache = prefix_cache(model, passages[0].ids[:prefix], layers)
    lengths = [passage.stop - prefix for passage in passages]

    def run(rows: list[int]) -> Batch:
        ids, inside = _span([passages[row] for row in rows], prefix, model.device)
        shared = {} if cache is None else {"past_key_values": repeated(cache, len(rows))}
        hidden = model.read({"input_ids": ids, **shared}, layers)
        return _averaged(rows, hidden, inside, encoders or {})

    for _, batch in run_passes(lengths, batch_size, model.device, run):
        yield batch


def _span(passages: list[Passage], prefix: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids behind the prefix, and which of them are read; both [batch, seq]."""
    # Nothing behind a passage's last token that is read can change it, so it is cut off there;
    # and padding on the right is behind everything, so causal attention needs no mask.
    rows = [passage.ids[prefix : passage.stop] for passage in passages]
    ids, _ = padded(rows, rows[0][-1], "right", device)
    column = torch.arange(prefix, prefix + ids.shape[1], device=ids.device)
    starts = torch.tensor([p.start for p in passages], device=ids.device)[:, None]
    stops = torch.tensor([p.stop for p in passages], device=ids.device)[:, None]
    return ids, (column >= starts) & (column < stops)


@torch.inference_mode()
def _averaged(
    rows: list[int],
    hidden: Mapping[int, Tensor],
    read: Tensor,
    encoders: Mapping[int, Encode],
) -> Batch:
    batch = Batch(rows, {}, {}, {})
    for n, outputs in hidden.items():
        inside = read.to(outputs.device)
        values = outputs.float().masked_fill(~inside[..., None], 0)
        batch.means[n] = values.sum(dim=1) / inside.sum(dim=1, keepdim=True)
        batch.norms[n] = _usual_norm(values.norm(dim=-1).masked_fill(~inside, torch.nan))
        if n in encoders:
            batch.encoded[n] = _encoded(values[inside], inside, encoders[n])
    return batch


def _encoded(tokens: Tensor, inside: Tensor, encode: Encode) -> Tensor:
    """Means, [batch, n], over each row's tokens of what they are encoded to.

    Args:
        tokens: [tokens, d_model], row after row.
        inside: [batch, seq]: where they are in their rows.
        encode: What makes [tokens, n] of them.
    """
    owner, sums = inside.nonzero()[:, 0], None
    parts = zip(tokens.split(ENCODED_TOKENS), owner.split(ENCODED_TOKENS), strict=True)
    for part, rows in parts:
        sums = added(sums, rows, encode(part), len(inside))
    assert sums is not None
    return sums / inside.sum(dim=1, keepdim=True)


def _usual_norm(norms: Tensor) -> Tensor:
    """Median of each row's norms [batch, seq], NaN and attention sinks left out."""
    middle = norms.nanmedian(dim=1, keepdim=True).values
    return norms.masked_fill(norms > SINK_FACTOR * middle, torch.nan).nanmedian(dim=1).values


def added(sums: Tensor | None, index: Tensor, values: Tensor, size: int) -> Tensor:
    """`sums`, [size, n], zeros at first, with rows of `values` added to the rows `index`."""
    before = values.new_zeros(size, values.shape[1]) if sums is None else sums
    return before.index_add_(0, index.to(values.device), values)
