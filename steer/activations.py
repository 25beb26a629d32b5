"""Mean activations over answers, the raw material of the contrastive methods.

Passes are batched, rows of like length together; each stops behind the deepest layer that is
read, and neither the head nor a gradient is computed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from steer.models import SteeredModel
from steer.models.batching import padded, run_passes
from steer.models.prefix import attention_span, prefix_cache, repeated, shared_length
from steer.models.tally import SINK_FACTOR


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


@dataclass(frozen=True)
class Contrast:
    """Sums of (mean activation on the wanted passage - on the shunned one), by layer.

    Attributes:
        sums: Layer -> [folds, d_model]; pair i is in fold i % folds.
        counts: [folds], pairs in each.
        residual_norms: Layer -> median norm of what was read, attention sinks left out.
    """

    sums: dict[int, Tensor]
    counts: Tensor
    residual_norms: dict[int, float]

    def means(self, without_fold: int | None = None) -> dict[int, Tensor]:
        """Mean over the pairs, [d_model] by layer; over those outside of one fold where given."""
        kept = torch.ones(len(self.counts))
        if without_fold is not None:
            kept[without_fold] = 0
        total = float((self.counts * kept).sum())
        return {n: ((kept.to(s) @ s) / total).float() for n, s in self.sums.items()}


def contrast(
    model: SteeredModel,
    wanted: Sequence[Passage],
    shunned: Sequence[Passage],
    layers: Sequence[int],
    *,
    batch_size: int | str = "auto",
    folds: int = 5,
) -> Contrast:
    """Read both sides of each pair; memory does not grow with their number.

    Args:
        model: Read as it is, with what `steering()` holds open, else unsteered.
        wanted: One passage a pair.
        shunned: As many.
        layers: Decoder blocks, counted from 0; all in one pass.
        batch_size: Passages in a pass; `auto` suits the device.
        folds: Into how many parts the sums are kept, for cross-validation.
    """
    pairs = len(wanted)
    folds = min(folds, pairs)
    sums: dict[int, Tensor] = {}
    norms: dict[int, list[Tensor]] = {n: [] for n in layers}
    passages = [*wanted, *shunned]
    with tqdm(total=len(passages), desc="reading activations", unit="answer") as bar:
        for rows, means, sizes in passage_means(model, passages, layers, batch_size=batch_size):
            fold = torch.tensor([row % pairs % folds for row in rows])
            sign = torch.tensor([1.0 if row < pairs else -1.0 for row in rows])
            for n in norms:
                values = _exact(means[n]) * _exact(sign.to(means[n].device))[:, None]
                sums.setdefault(n, values.new_zeros(folds, model.d_model))
                sums[n].index_add_(0, fold.to(values.device), values)
                norms[n].append(sizes[n])
            bar.update(len(rows))
    counts = torch.bincount(torch.arange(pairs) % folds, minlength=folds).float()
    return Contrast(
        {n: s.cpu() for n, s in sums.items()},
        counts,
        {n: float(torch.cat(parts).median()) for n, parts in norms.items()},
    )


def _exact(values: Tensor) -> Tensor:
    # The two sides are summed in any order: where massive activations cancel, float32 would lose
    # digits that the difference of a pair keeps. Apple's GPUs have no float64.
    return values if values.device.type == "mps" else values.double()


def passage_means(
    model: SteeredModel,
    passages: Sequence[Passage],
    layers: Sequence[int],
    *,
    batch_size: int | str = "auto",
) -> Iterator[tuple[list[int], dict[int, Tensor], dict[int, Tensor]]]:
    """Yield `(rows, means, norms)`: by layer, [batch, d_model] means and [batch] median norms."""
    starts = [passage.ids[: passage.start] for passage in passages]
    prefix = shared_length(starts) if attention_span(model) else 0
    cache = prefix_cache(model, passages[0].ids[:prefix], layers)
    lengths = [passage.stop - prefix for passage in passages]

    def run(rows: list[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        return _read_batch(model, [passages[row] for row in rows], layers, prefix, cache)

    for rows, (means, norms) in run_passes(lengths, batch_size, model.device, run):
        yield rows, means, norms


@torch.inference_mode()
def _read_batch(
    model: SteeredModel,
    passages: list[Passage],
    layers: Sequence[int],
    prefix: int,
    cache: DynamicCache | None,
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    # Nothing behind a passage's last token that is read can change it, so it is cut off there;
    # and padding on the right is behind everything, so causal attention needs no mask.
    rows = [passage.ids[prefix : passage.stop] for passage in passages]
    ids, _ = padded(rows, rows[0][-1], "right", model.device)
    column = torch.arange(prefix, prefix + ids.shape[1], device=ids.device)
    starts = torch.tensor([p.start for p in passages], device=ids.device)[:, None]
    stops = torch.tensor([p.stop for p in passages], device=ids.device)[:, None]
    read = (column >= starts) & (column < stops)
    shared = {} if cache is None else {"past_key_values": repeated(cache, len(rows))}
    hidden = model.read({"input_ids": ids, **shared}, layers)
    means, norms = {}, {}
    for n in layers:
        inside = read.to(hidden[n].device)
        values = hidden[n].float().masked_fill(~inside[..., None], 0)
        means[n] = values.sum(dim=1) / inside.sum(dim=1, keepdim=True)
        norms[n] = _usual_norm(values.norm(dim=-1).masked_fill(~inside, torch.nan))
    return means, norms


def _usual_norm(norms: Tensor) -> Tensor:
    """Median of each row's norms [batch, seq], NaN and attention sinks left out."""
    middle = norms.nanmedian(dim=1, keepdim=True).values
    return norms.masked_fill(norms > SINK_FACTOR * middle, torch.nan).nanmedian(dim=1).values
