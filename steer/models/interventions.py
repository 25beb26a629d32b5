"""What a steering method may ask of a model, as plain data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from steer.models.positions import EVERYWHERE, NOWHERE, Positions, TokenMask, Where, for_batch


class Edit(Protocol):
    """A frozen dataclass that maps block outputs [batch, seq, d_model] to new ones.

    `gated` is True for an edit that may decide to change nothing.
    """

    gated: bool

    def __call__(self, hidden: Tensor) -> Tensor:
        """The edited `hidden`, of the same shape, dtype and device."""
        ...

    def is_zero(self) -> bool:
        """Whether it changes nothing, whatever it is given."""
        ...

    def rows(self, index: Tensor) -> "Edit":
        """The edit of the rows `index` of a batch."""
        ...

    def is_per_row(self) -> bool:
        """Whether it differs from row to row of a batch."""
        ...


@dataclass(frozen=True, eq=False)
class Add:
    """The edit `h -> h + strength * vector`, summed in float32, kept in the dtype of `h`.

    Attributes:
        vector: [d_model], or [rows, d_model] with one vector for each row of a batch.
        strength: Signed, dimensionless; a number, or [rows].
    """

    vector: Tensor
    strength: float | Tensor = 1.0
    gated = False

    def __call__(self, hidden: Tensor) -> Tensor:
        change = self.change().float()
        if change.ndim == 2:
            change = for_batch(change, len(hidden))[:, None]
        return (hidden.float() + change).to(hidden.dtype)

    def change(self) -> Tensor:
        """What is added, [d_model], or [rows, d_model] where it differs from row to row."""
        if isinstance(self.strength, Tensor) and self.strength.ndim:
            return self.strength[:, None].to(self.vector) * self.vector
        return self.strength * self.vector

    def is_zero(self) -> bool:
        """Whether every row's strength, or the vector, is 0."""
        return not bool(self.change().any())

    def rows(self, index: Tensor) -> "Add":
        """The edit of the rows `index` of a batch."""
        vector, strength = self.vector, self.strength
        if vector.ndim == 2:
            vector = _taken(vector, index)
        if isinstance(strength, Tensor) and strength.ndim:
            strength = _taken(strength, index)
        return replace(self, vector=vector, strength=strength)

    def is_per_row(self) -> bool:
        """Whether it differs from row to row of a batch."""
        return self.change().ndim == 2


@dataclass(frozen=True, eq=False)
class EditLayer:
    """Replace the output of decoder block `layer`, [batch, seq, d_model], by `edit` of it.

    Attributes:
        layer: Decoder block, counted from 0.
        edit: What is done.
        where: The tokens it is done to; a sequence gives each row its own.
    """

    layer: int
    edit: Edit
    where: Where = EVERYWHERE

    def is_idle(self) -> bool:
        """Whether it changes nothing, whatever it is given."""
        return self.where == NOWHERE or self.edit.is_zero()


@dataclass(frozen=True)
class EditPrompt:
    """Put `text` and a space before the user's text, before chat template and tokenizer."""

    text: str


Intervention = EditLayer | EditPrompt


def take_rows(interventions: Sequence[Intervention], index: Tensor) -> list[Intervention]:
    """The same interventions for the rows `index` of the batch that they were made for."""
    return [_of_rows(i, index) if isinstance(i, EditLayer) else i for i in interventions]


def _of_rows(intervention: EditLayer, index: Tensor) -> EditLayer:
    where = intervention.where
    if isinstance(where, TokenMask):
        where = TokenMask(_taken(where.mask, index))
    elif not isinstance(where, Positions) and len(where) > 1:
        where = [where[row] for row in index.tolist()]
        where = where[0] if len(set(where)) == 1 else where
    return replace(intervention, edit=intervention.edit.rows(index), where=where)


def only_rows(interventions: Sequence[Intervention], on: Sequence[bool]) -> list[Intervention]:
    """The same interventions, which leave the rows alone for which `on` is False."""
    if all(on):
        return list(interventions)
    return [_only(i, on) if isinstance(i, EditLayer) else i for i in interventions]


def _only(intervention: EditLayer, on: Sequence[bool]) -> EditLayer:
    where = intervention.where
    if isinstance(where, TokenMask):
        rows = torch.tensor(on, device=where.mask.device)[:, None]
        return replace(intervention, where=TokenMask(where.mask & rows))
    given = [where] if isinstance(where, Positions) else where
    each = given if len(given) == len(on) else [*given] * len(on)
    kept = [p if o else NOWHERE for p, o in zip(each, on, strict=True)]
    return replace(intervention, where=kept)


def _taken(values: Tensor, index: Tensor) -> Tensor:
    """The rows `index` of `values`; a single row serves all."""
    return values[index.to(values.device)] if len(values) > 1 else values


def check_rows(interventions: Sequence[Intervention], rows: int) -> None:
    """Raise a ValueError for what is given by row, but not for each of `rows` rows."""
    for i in interventions:
        counts = _row_counts(i) if isinstance(i, EditLayer) else []
        for count in counts:
            if count not in (1, rows):
                raise ValueError(f"steering is given for {count} rows, there are {rows}")


def _row_counts(intervention: EditLayer) -> list[int]:
    where, edit = intervention.where, intervention.edit
    counts = [len(edit.change())] if isinstance(edit, Add) and edit.is_per_row() else []
    if isinstance(where, TokenMask):
        return [*counts, len(where.mask)]
    return counts if isinstance(where, Positions) else [*counts, len(where)]


def is_per_row(intervention: EditLayer) -> bool:
    """Whether it differs from row to row of a batch."""
    alike = isinstance(intervention.where, Positions)
    return not alike or intervention.edit.is_per_row()


def opposite(interventions: Sequence[Intervention]) -> list[Intervention]:
    """The same additions the other way round; prompts and other edits are left out."""
    return [
        replace(i, edit=Add(-i.edit.vector, i.edit.strength))
        for i in interventions
        if isinstance(i, EditLayer) and isinstance(i.edit, Add)
    ]


def cancels(edits: Sequence[EditLayer]) -> bool:
    """Whether edits of one layer add up to nothing, but for the rounding of their vectors.

    Additions to the same tokens only; any other edit is taken to leave something.
    """
    changes = [e.edit.change().cpu() for e in edits if isinstance(e.edit, Add)]
    alike = all(e.where == edits[0].where for e in edits)
    if len(changes) < max(len(edits), 2) or not alike:
        return False
    rounding = 4 * max(torch.finfo(change.dtype).eps for change in changes)
    net = torch.stack([c.float() for c in torch.broadcast_tensors(*changes)])
    return bool((net.sum(0).abs() <= rounding * net.abs().sum(0)).all())


D = TypeVar("D")


def on_device(edit: D, device: torch.device) -> D:
    """A copy of a frozen dataclass with its tensors on `device`."""
    tensors: dict[str, Any] = {
        f.name: value.to(device)
        for f in fields(edit)  # type: ignore[arg-type]
        if isinstance(value := getattr(edit, f.name), Tensor)
    }
    return replace(edit, **tensors) if tensors else edit  # type: ignore[type-var]


def describe(intervention: Intervention) -> dict[str, Any]:
    """What an intervention is, as JSON-like values; tensors by their SHA-256."""
    return {"kind": type(intervention).__name__, **_plain(intervention)}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        data = value.detach().cpu().contiguous()
        digest = hashlib.sha256(data.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"shape": list(data.shape), "sha256": digest}
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
