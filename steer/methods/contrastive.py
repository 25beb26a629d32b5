"""What all methods share that learn from pairs of a wanted answer and an unwanted one."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, cosine_similarity

from steer.activations import FOLDS, Contrast, PairMeans, contrast, pair_means
from steer.build import check_batch_size
from steer.datasets import SIDES, Row, answer_of, are_single, question_of, sides_of
from steer.methods.base import ALONE, Context, Trained
from steer.models import ChatFormat, SteeredModel
from steer.passages import Passage
from steer.vectors import Vectors

log = logging.getLogger(__name__)

MEAN = "mean over the answer"


@dataclass(kw_only=True)
class PairReader(ChatFormat, ABC):
    """Two passages of each row, a wanted and an unwanted one, and the layers that are read.

    Attributes:
        layers: Decoder blocks to read, counted from 0; all in one pass. Every block where null.
        batch_size: Answers in a pass; `auto` suits the device.
    """

    layers: list[int] | None = None
    batch_size: str = "auto"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers must differ: got {self.layers}")

    def chosen_layers(self, model: SteeredModel) -> list[int]:
        """`layers`, or every one of `model`."""
        layers = list(range(model.depth)) if self.layers is None else self.layers
        model.check_layers(layers)
        if not layers:
            raise ValueError("layers is empty: name the decoder blocks to read, e.g. layers: [15]")
        return layers

    def sides(
        self, model: SteeredModel, rows: Sequence[Row]
    ) -> tuple[list[Passage], list[Passage]]:
        """The wanted and the unwanted passage of each row.

        Raises:
            ValueError: No rows, or a row without answers.
        """
        if not rows:
            raise ValueError("no rows: give contrastive pairs of matching and not_matching answers")
        pairs = [self.passages(model, row, number) for number, row in enumerate(rows, start=1)]
        if any(passage.start == 0 for pair in pairs for passage in pair):
            log.warning(
                "rows without a question, and a tokenizer without a first token of its own: the "
                "average holds the first token's massive activation; give questions or a template"
            )
        return [wanted for wanted, _ in pairs], [shunned for _, shunned in pairs]

    @abstractmethod
    def passages(self, model: SteeredModel, row: Row, number: int) -> tuple[Passage, Passage]:
        """The two sides of row `number`, counted from 1, as tokens, and what is read of them."""


@dataclass(kw_only=True)
class ContrastivePairs(PairReader):
    """How contrastive rows are read: `matching` and `not_matching` answers to a `question`.

    Activations are averaged over the answer's tokens; with `multiple_choice`, the answers are
    letters in brackets, "(A)", and the one token of the letter is read.

    Attributes:
        multiple_choice: Whether answers are choices of a list that the question holds.
    """

    multiple_choice: bool = False
    # The method's name, for the folder of its vectors.
    kind: ClassVar[str]

    @property
    def folder(self) -> str:
        """As EasyEdit2 names its own."""
        return self.folder_of(self.kind)

    def folder_of(self, kind: str) -> str:
        """The folder of another method's vectors, made of the same answers."""
        return f"{kind}_vector_multiple_choice" if self.multiple_choice else f"{kind}_vector"

    def sides(
        self, model: SteeredModel, rows: Sequence[Row]
    ) -> tuple[list[Passage], list[Passage]]:
        """As for any; a ValueError also where rows are no pairs, or nothing tells them apart."""
        if are_single(rows):
            raise ValueError(
                f"{self.kind} learns from pairs, each row a matching and a not_matching answer: "
                "these rows are single texts, from which caa learns"
            )
        wanted, shunned = super().sides(model, rows)
        if all(one.ids == other.ids for one, other in zip(wanted, shunned, strict=True)):
            raise ValueError(
                "matching and not_matching are the same text in every row: there is nothing to "
                "learn; give pairs whose answers differ"
            )
        return wanted, shunned

    def passages(self, model: SteeredModel, row: Row, number: int) -> tuple[Passage, Passage]:
        """The two sides of row `number`, counted from 1, as tokens, and what is read of them."""
        wanted, shunned = (self.passage(model, row, key, number) for key in SIDES)
        return wanted, shunned

    def passage(self, model: SteeredModel, row: Row, key: str, number: int) -> Passage:
        """The answer under `key` of row `number`, behind the question, and what is read of it."""
        question = self.text(model.tokenizer, question_of(row, number))
        start = len(self.encode(model.tokenizer, question))
        joint = "\nAnswer: " if self.multiple_choice else " "
        ids = self.encode(model.tokenizer, question + joint + answer_of(row, key, number))
        if len(ids) <= start:
            raise ValueError(f"row {number}: {key!r} adds no token to the question")
        span = (len(ids) - 2, len(ids) - 1) if self.multiple_choice else (start, len(ids))
        return Passage(ids, *span)

    @property
    def tokens_read(self) -> str:
        """For `metadata.json`."""
        return "the last but one" if self.multiple_choice else MEAN


@dataclass(kw_only=True)
class MeanDifferences(ContrastivePairs):
    """One vector a layer: the mean of (activation on `matching` - on `not_matching`).

    Rows may be single texts too, as many on either side as there are: a `matching` answer or a
    `not_matching` one, or a `text` whose `label` is 1 (matching), or 0 or -1. The vector is then
    the mean over the matching texts less the mean over the others.
    """

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """Vectors `layer_<n>` of shape [d_model], float32.

        Raises:
            ValueError: No rows, a row without answers, or a layer that is not there.
        """
        del context
        layers = self.chosen_layers(model)
        if are_single(rows):
            return self._of_single_texts(model, rows, layers)
        wanted, shunned = self.sides(model, rows)
        found = contrast(model, wanted, shunned, layers, batch_size=self.batch_size)
        return mean_differences(found, len(rows), self.tokens_read)

    def _of_single_texts(
        self, model: SteeredModel, rows: Sequence[Row], layers: list[int]
    ) -> Trained:
        *sides, keys = sides_of(rows)
        passages = [self.passage(model, r, keys[n], n + 1) for n, r in enumerate(rows)]
        wanted, shunned = ([passages[n] for n in side] for side in sides)
        found = contrast_sides(model, wanted, shunned, layers, self.batch_size)
        parts = [_fold_rows(len(found.counts), len(side)) for side in sides]
        folds = [
            sorted([sides[0][n] for n in one] + [sides[1][n] for n in other])
            for one, other in zip(*parts, strict=True)
        ]
        return _differences(found, folds, self.tokens_read)


@dataclass(kw_only=True)
class PairDirections(ContrastivePairs):
    """One vector a layer: a direction found in the mean activations of all answers.

    It is turned towards `matching`, and as long as the mean difference, so that the same
    multiplier is as strong as with caa.
    """

    @abstractmethod
    def direction(self, wanted: Tensor, shunned: Tensor) -> Tensor:
        """A direction [d_model] of any length that tells the sides, [pairs, d_model], apart."""

    def train(self, model: SteeredModel, rows: Sequence[Row], context: Context = ALONE) -> Trained:
        """Vectors `layer_<n>` of shape [d_model], float32.

        `Trained.report` has for each the `accuracy`, the share of held-out pairs whose wanted side
        lies further along the direction than the other one, by cross-validation; and the `cosine`
        to the mean difference.

        Raises:
            ValueError: No rows, a row without answers, or a layer that is not there.
        """
        del context
        layers = self.chosen_layers(model)
        found = pair_means(model, *self.sides(model, rows), layers, batch_size=self.batch_size)
        folds = _fold_rows(min(FOLDS, len(rows)), len(rows))
        about = _about(found, self.tokens_read)
        everything = list(range(len(rows)))
        rest = [sorted(set(everything) - set(fold)) for fold in folds]
        whole, *without = [self._vectors(found, kept, about) for kept in (everything, *rest)]
        trained = list(zip(without, folds, strict=True))
        return Trained(whole, trained, report=_judged(found, whole, trained))

    def _vectors(
        self, found: PairMeans, rows: list[int], about: Mapping[str, Mapping[str, Any]]
    ) -> Vectors:
        return Vectors(
            {f"layer_{n}": self._vector(*sides[:, rows]) for n, sides in found.sides.items()}, about
        )

    def _vector(self, wanted: Tensor, shunned: Tensor) -> Tensor:
        mean = (wanted.double() - shunned.double()).mean(dim=0)
        direction = self.direction(wanted, shunned).double()
        sign = -1 if direction @ mean < 0 else 1
        # What has no direction is no vector, rather than NaN.
        return (sign * direction * (mean.norm() / direction.norm().clamp_min(1e-30))).float()


def _judged(
    found: PairMeans, whole: Vectors, folds: Sequence[tuple[Vectors, list[int]]]
) -> dict[str, Any]:
    """By layer's name, the accuracy on the rows that a fold left out, and the cosine."""
    report: dict[str, Any] = {}
    for n, sides in found.sides.items():
        differences, name = sides[0] - sides[1], f"layer_{n}"
        right = [bool(differences[row] @ v[name] > 0) for v, rows in folds for row in rows]
        cosine = cosine_similarity(whole[name], differences.mean(dim=0), dim=0)
        report[name] = {"cosine": float(cosine)}
        if right:
            report[name]["accuracy"] = sum(right) / len(right)
    return report


def mean_differences(found: Contrast, rows: int, tokens_read: str) -> Trained:
    """Vectors `layer_<n>`, the mean differences of `found`, and those without each fold."""
    return _differences(found, _fold_rows(len(found.counts), rows), tokens_read)


def _differences(found: Contrast, folds: Sequence[list[int]], tokens_read: str) -> Trained:
    about = _about(found, tokens_read)

    def means(without_fold: int | None = None) -> Vectors:
        found_here = found.means(without_fold).items()
        return Vectors({f"layer_{n}": vector for n, vector in found_here}, about)

    return Trained(means(), [(means(number), numbers) for number, numbers in enumerate(folds)])


def contrast_sides(
    model: SteeredModel,
    wanted: Sequence[Passage],
    shunned: Sequence[Passage],
    layers: Sequence[int],
    batch_size: int | str,
) -> Contrast:
    """As `contrast`, of sides that are no pairs, one or more passages each.

    `residual_norms` are the means, by the sides' sizes, of what `contrast` gives for each side.
    """
    folds, share = min(FOLDS, len(wanted), len(shunned)), len(wanted) / len([*wanted, *shunned])
    one, other = (
        contrast(model, side, [], layers, batch_size=batch_size, folds=folds)
        for side in (wanted, shunned)
    )
    pairs = [(n, norm, other.residual_norms[n]) for n, norm in one.residual_norms.items()]
    norms = {n: share * norm + (1 - share) * others for n, norm, others in pairs}
    return replace(one, residual_norms=norms, less=other)


def _about(found: Contrast | PairMeans, tokens_read: str) -> dict[str, dict[str, Any]]:
    return {
        f"layer_{n}": {"layer": n, "tokens_read": tokens_read, "residual_norm": norm}
        for n, norm in found.residual_norms.items()
    }


def _fold_rows(folds: int, rows: int) -> list[list[int]]:
    """The numbers of each fold's rows; no folds where one would leave nothing."""
    return [list(range(fold, rows, folds)) for fold in range(folds if folds > 1 else 0)]
