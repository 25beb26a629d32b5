"""Contrastive Activation Addition (Rimsky et al., 2024, https://arxiv.org/abs/2312.06681)."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from steer.activations import Contrast, Passage, contrast
from steer.build import check_batch_size
from steer.datasets import Row, answer_of, question_of
from steer.methods.base import Trained
from steer.models import ChatFormat, SteeredModel

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainCAA(ChatFormat):
    """One vector a layer: the mean of (activation on `matching` - on `not_matching`), sec. 3.

    Activations are averaged over the answer's tokens; with `multiple_choice`, the answers are
    letters in brackets, "(A)", and the one token of the letter is read.

    Attributes:
        layers: Decoder blocks to read, counted from 0; all in one pass. Every block where null.
        multiple_choice: Whether answers are choices of a list that the question holds.
        batch_size: Answers in a pass; `auto` suits the device.
    """

    layers: list[int] | None = None
    multiple_choice: bool = False
    batch_size: str = "auto"

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            raise ValueError(f"layers must differ: got {self.layers}")

    @property
    def folder(self) -> str:
        """EasyEdit2's name for it."""
        return "caa_vector_multiple_choice" if self.multiple_choice else "caa_vector"

    def train(self, model: SteeredModel, rows: Sequence[Row]) -> Trained:
        """Vectors `layer_<n>` of shape [d_model], float32.

        Raises:
            ValueError: No rows, a row without answers, or a layer that is not there.
        """
        layers = list(range(model.depth)) if self.layers is None else self.layers
        model.check_layers(layers)
        if not layers or not rows:
            raise ValueError(f"CAA needs layers and rows: got {layers} and {len(rows)} rows")
        pairs = [self.passages(model, row, number) for number, row in enumerate(rows, start=1)]
        if any(wanted.start == 0 for wanted, _ in pairs):
            log.warning(
                "rows without a question, and a tokenizer without a first token of its own: the "
                "average holds the first token's massive activation; give questions or a template"
            )
        wanted, shunned = zip(*pairs, strict=True)
        found = contrast(model, wanted, shunned, layers, batch_size=self.batch_size)
        return self._trained(found, len(rows))

    def passages(self, model: SteeredModel, row: Row, number: int) -> tuple[Passage, Passage]:
        """The two sides of row `number`, counted from 1, as tokens, and what is read of them."""
        question = self.text(model.tokenizer, question_of(row, number))
        start = len(self.encode(model.tokenizer, question))
        joint = "\nAnswer: " if self.multiple_choice else " "
        sides = []
        for key in ("matching", "not_matching"):
            ids = self.encode(model.tokenizer, question + joint + answer_of(row, key, number))
            if len(ids) <= start:
                raise ValueError(f"row {number}: {key!r} adds no token to the question")
            span = (len(ids) - 2, len(ids) - 1) if self.multiple_choice else (start, len(ids))
            sides.append(Passage(ids, *span))
        return sides[0], sides[1]

    def _trained(self, found: Contrast, rows: int) -> Trained:
        read = "the last but one" if self.multiple_choice else "mean over the answer"
        folds = len(found.counts)
        return Trained(
            vectors={f"layer_{n}": vector for n, vector in found.means().items()},
            about={
                f"layer_{n}": {"layer": n, "tokens_read": read, "residual_norm": norm}
                for n, norm in found.residual_norms.items()
            },
            folds=[
                (
                    {f"layer_{n}": v for n, v in found.means(without_fold=fold).items()},
                    list(range(fold, rows, folds)),
                )
                for fold in range(folds if folds > 1 else 0)
            ],
        )
