"""Mean activations over answers, the raw material of the contrastive methods.

Where several processes share work, each reads its part of the passages. The main one adds up, in
float64 and in the order of processes, or puts rows back in their places.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from steer import processes
from steer.models import SteeredModel
from steer.passages import Batch, Encode, Passage, added, passage_means
from steer.progress import progress

# Into how many parts what is read is kept, for cross-validation.
FOLDS = 5


@dataclass(frozen=True)
class FeatureSums:
    """Sums over pairs of what an encoder makes of both sides, each averaged over its tokens.

    Attributes:
        differences: [folds, n], of the wanted side less the shunned one.
        wanted: [folds, n], pairs whose wanted side is above 0.
        shunned: [folds, n], the same for the shunned side.
    """

    differences: Tensor
    wanted: Tensor
    shunned: Tensor


@dataclass(frozen=True)
class Contrast:
    """Sums of (mean activation on the wanted passage - on the shunned one), by layer.

    Attributes:
        sums: Layer -> [folds, d_model]; pair i is in fold i % folds.
        counts: [folds], pairs in each.
        residual_norms: Layer -> median norm of what was read, attention sinks left out.
        features: Layer -> sums of what its encoder made.
        less: Where the sides are no pairs: all this of the shunned side, and above of the wanted
            side alone; the means are then subtracted.
    """

    sums: dict[int, Tensor]
    counts: Tensor
    residual_norms: dict[int, float]
    features: dict[int, FeatureSums] = field(default_factory=dict)
    less: "Contrast | None" = None

    def means(self, without_fold: int | None = None) -> dict[int, Tensor]:
        """Mean over the pairs, [d_model] by layer; over those outside of one fold where given."""
        means = {n: self._exact_mean(s, without_fold) for n, s in self.sums.items()}
        if (less := self.less) is not None:
            for n, sums in less.sums.items():
                means[n] -= less._exact_mean(sums, without_fold)
        return {n: mean.float() for n, mean in means.items()}

    def mean(self, sums: Tensor, without_fold: int | None = None) -> Tensor:
        """Mean over the pairs of sums by fold, [folds, n]; float32."""
        return self._exact_mean(sums, without_fold).float()

    def _exact_mean(self, sums: Tensor, without_fold: int | None) -> Tensor:
        return self.total(sums, without_fold) / self.total(self.counts, without_fold)

    def total(self, sums: Tensor, without_fold: int | None = None) -> Tensor:
        """Sum over the folds of sums by fold, [folds, ...], one left out where given."""
        kept = torch.ones(len(self.counts)).to(sums)
        if without_fold is not None:
            kept[without_fold] = 0
        return kept @ sums


@dataclass(frozen=True)
class PairMeans:
    """Mean activations of each pair.

    Attributes:
        sides: Layer -> [2, pairs, d_model], float32: the wanted passages, then the shunned ones.
        residual_norms: As in `Contrast`.
    """

    sides: dict[int, Tensor]
    residual_norms: dict[int, float]


def contrast(
    model: SteeredModel,
    wanted: Sequence[Passage],
    shunned: Sequence[Passage],
    layers: Sequence[int],
    *,
    batch_size: int | str = "auto",
    folds: int = FOLDS,
    encoders: Mapping[int, Encode] | None = None,
) -> Contrast:
    """Read both sides of each pair; memory does not grow with their number.

    Args:
        model: Read as it is, with what `steering()` holds open, else unsteered.
        wanted: One passage a pair.
        shunned: As many; none for the sums of the wanted ones alone.
        layers: Decoder blocks, counted from 0; all in one pass.
        batch_size: Passages in a pass; `auto` suits the device.
        folds: Into how many parts the sums are kept, for cross-validation.
        encoders: Layer -> what is summed there besides, out of the same pass.
    """
    pairs = len(wanted)
    folds = min(folds, pairs)
    passages, shared = [*wanted, *shunned], (layers, batch_size, pairs, folds, encoders or {})
    jobs = [_ToSum(*_picked(passages, rows), *shared) for rows in _shares(passages)]
    parts = processes.share_out(jobs, lambda job: job(model))
    counts = torch.bincount(torch.arange(pairs) % folds, minlength=folds).float()
    active = _total(part.active for part in parts)
    differences = _total(part.differences for part in parts)
    features = {n: FeatureSums(s, *active[n].chunk(2)) for n, s in differences.items()}
    norms = _medians([part.norms for part in parts])
    return Contrast(_total(part.sums for part in parts), counts, norms, features)


def pair_means(
    model: SteeredModel,
    wanted: Sequence[Passage],
    shunned: Sequence[Passage],
    layers: Sequence[int],
    *,
    batch_size: int | str = "auto",
) -> PairMeans:
    """Read both sides of each pair, and keep them apart; arguments as for `contrast`."""
    passages = [*wanted, *shunned]
    sides = {n: torch.empty(len(passages), model.d_model) for n in layers}
    shares = _shares(passages)
    jobs = [_ToKeep(*_picked(passages, rows), layers, batch_size) for rows in shares]
    parts = processes.share_out(jobs, lambda job: job(model))
    for rows, (means, _) in zip(shares, parts, strict=True):
        for n, values in means.items():
            sides[n][rows] = values
    norms = _medians([norms for _, norms in parts])
    return PairMeans({n: s.unflatten(0, (2, -1)) for n, s in sides.items()}, norms)


# ---- what one process reads ----


def _shares(passages: Sequence[Passage]) -> list[list[int]]:
    return processes.shares([passage.stop for passage in passages])


def _picked(passages: Sequence[Passage], rows: list[int]) -> tuple[list[Passage], list[int]]:
    return [passages[row] for row in rows], rows


@dataclass(frozen=True)
class _Share:
    """What a process is to read.

    Attributes:
        passages: Maybe none.
        rows: The number of each among all, the wanted ones and then the shunned ones.
        layers: As for `contrast`.
        batch_size: As for `contrast`.
    """

    passages: Sequence[Passage]
    rows: Sequence[int]
    layers: Sequence[int]
    batch_size: int | str

    def batches(
        self, model: SteeredModel, encoders: Mapping[int, Encode] | None = None
    ) -> Iterator[Batch]:
        """What is read, a batch at a time; its rows are numbers among `passages`."""
        if not self.passages:
            return
        bar = progress(
            total=len(self.passages),
            what="reading activations",
            unit="answer",
            hidden=not processes.is_main(),
        )
        given = (self.layers, self.batch_size, encoders)
        with bar:
            for batch in passage_means(model, self.passages, *given):
                processes.check()
                yield batch
                bar.update(len(batch.rows))


class _Sums(NamedTuple):
    """Sums over a share, and the norms of its rows, by layer."""

    sums: dict[int, Tensor]
    differences: dict[int, Tensor]
    active: dict[int, Tensor]
    norms: dict[int, Tensor]


@dataclass(frozen=True)
class _ToSum(_Share):
    """A share of `contrast`."""

    pairs: int
    folds: int
    encoders: Mapping[int, Encode]

    def __call__(self, model: SteeredModel) -> _Sums:
        sums: dict[int, Tensor] = {}
        differences: dict[int, Tensor] = {}
        active: dict[int, Tensor] = {}
        norms: dict[int, list[Tensor]] = {}
        for batch in self.batches(model, self.encoders):
            rows = torch.tensor([self.rows[row] for row in batch.rows])
            fold, shuns = rows % self.pairs % self.folds, rows >= self.pairs
            sign = 1.0 - 2.0 * shuns[:, None]
            for n, means in batch.means.items():
                norms.setdefault(n, []).append(batch.norms[n])
                sums[n] = added(sums.get(n), fold, _exact(means, sign), self.folds)
            for n, values in batch.encoded.items():
                exact, above = _exact(values, sign), (values > 0).float()
                differences[n] = added(differences.get(n), fold, exact, self.folds)
                side = fold + self.folds * shuns
                active[n] = added(active.get(n), side, above, 2 * self.folds)
        return _Sums(_on_cpu(sums), _on_cpu(differences), _on_cpu(active), _joined(norms))


@dataclass(frozen=True)
class _ToKeep(_Share):
    """A share of `pair_means`."""

    def __call__(self, model: SteeredModel) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        means = {n: torch.empty(len(self.rows), model.d_model) for n in self.layers}
        norms: dict[int, list[Tensor]] = {}
        for batch in self.batches(model):
            for n, values in batch.means.items():
                means[n][batch.rows] = values.cpu()
                norms.setdefault(n, []).append(batch.norms[n])
        return means, _joined(norms)


def _exact(values: Tensor, sign: Tensor) -> Tensor:
    # The two sides are summed in any order: where massive activations cancel, float32 would lose
    # digits that the difference of a pair keeps. Apple's GPUs have no float64.
    exact = values if values.device.type == "mps" else values.double()
    return exact * sign.to(exact)


def _on_cpu(tensors: Mapping[int, Tensor]) -> dict[int, Tensor]:
    return {n: tensor.cpu() for n, tensor in tensors.items()}


def _joined(parts: Mapping[int, Sequence[Tensor]]) -> dict[int, Tensor]:
    return {n: torch.cat(list(tensors)).cpu() for n, tensors in parts.items()}


def _total(parts: Iterable[Mapping[int, Tensor]]) -> dict[int, Tensor]:
    """Sums over the processes, by layer; one that read nothing has none."""
    total: dict[int, Tensor] = {}
    for part in parts:
        for n, sums in part.items():
            total[n] = total[n] + sums if n in total else sums
    return total


def _medians(parts: Sequence[Mapping[int, Tensor]]) -> dict[int, float]:
    layers = dict.fromkeys(n for part in parts for n in part)
    return {n: float(torch.cat([p[n] for p in parts if n in p]).median()) for n in layers}
