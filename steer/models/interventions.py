"""What a steering method may ask of a model, as plain data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from steer.models.edits import Add, Edit, taken
from steer.models.gates import Gate
from steer.models.positions import EVERYWHERE, NOWHERE, Positions, TokenMask, Where, masked

HEAD_INPUT = "head input"
LOGITS = "logits"
# Where activations are edited: a decoder block's number, or one of the two above.
Place = int | str


class _Edited(Protocol):
    @property
    def edit(self) -> Edit: ...

    @property
    def where(self) -> Where: ...


class _Placed:
    """What all edits of activations share."""

    def is_idle(self: _Edited) -> bool:
        """Whether it changes nothing, whatever it is given."""
        return self.where == NOWHERE or self.edit.is_zero()


@dataclass(frozen=True, eq=False)
class EditLayer(_Placed):
    """Replace the output of decoder block `layer`, [batch, seq, d_model], by `edit` of it.

    Attributes:
        layer: Decoder block, counted from 0.
        edit: What is done.
        where: The tokens it is done to; a sequence gives each row its own.
        gate: Which of them, or of the rows, let it act; all where None.
    """

    layer: int
    edit: Edit
    where: Where = EVERYWHERE
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if self.gate is not None and self.gate.layer > self.layer:
            raise ValueError(
                f"a gate that reads layer {self.gate.layer} is decided too late for an edit of "
                f"layer {self.layer}: read that layer or one below it"
            )

    @property
    def place(self) -> Place:
        """The block's number."""
        return self.layer


@dataclass(frozen=True, eq=False)
class EditHeadInput(_Placed):
    """Replace what the language model head reads, [batch, seq, d_model], by `edit` of it."""

    edit: Edit
    where: Where = EVERYWHERE
    gate: Gate | None = None
    place = HEAD_INPUT


@dataclass(frozen=True, eq=False)
class EditLogits(_Placed):
    """Replace what the language model head gives, [batch, seq, vocab], by `edit` of it."""

    edit: Edit
    where: Where = EVERYWHERE
    gate: Gate | None = None
    place = LOGITS


@dataclass(frozen=True)
class EditPrompt:
    """Put `text` and a space before the user's text, before chat template and tokenizer."""

    text: str


# isinstance knows unions.
EditTensor = EditLayer | EditHeadInput | EditLogits
Intervention = EditTensor | EditPrompt


def take_rows(interventions: Sequence[Intervention], index: Tensor) -> list[Intervention]:
    """The same interventions for the rows `index` of the batch that they were made for."""
    return [_of_rows(i, index) if isinstance(i, EditTensor) else i for i in interventions]


def _of_rows(intervention: EditTensor, index: Tensor) -> EditTensor:
    where = intervention.where
    if isinstance(where, TokenMask):
        where = TokenMask(taken(where.mask, index))
    elif not isinstance(where, Positions) and len(where) > 1:
        where = [where[row] for row in index.tolist()]
        where = where[0] if len(set(where)) == 1 else where
    return replace(intervention, edit=intervention.edit.rows(index), where=where)


def only_rows(interventions: Sequence[Intervention], on: Sequence[bool]) -> list[Intervention]:
    """The same interventions, which leave the rows alone for which `on` is False."""
    if all(on):
        return list(interventions)
    return [_only(i, on) if isinstance(i, EditTensor) else i for i in interventions]


def _only(intervention: EditTensor, on: Sequence[bool]) -> EditTensor:
    where = intervention.where
    if isinstance(where, TokenMask):
        rows = torch.tensor(on, device=where.mask.device)[:, None]
        return replace(intervention, where=TokenMask(where.mask & rows))
    given = [where] if isinstance(where, Positions) else where
    each = given if len(given) == len(on) else [*given] * len(on)
    kept = [p if o else NOWHERE for p, o in zip(each, on, strict=True)]
    return replace(intervention, where=kept)


def with_prompt(
    interventions: Sequence[Intervention], prompt: int, tokens: int
) -> list[Intervention]:
    """The same on rows of up to `tokens` tokens, the first `prompt` of which count as the prompt.

    Gates by row still read what a pass says is the prompt. A ValueError where rows differ.
    """
    return [
        replace(i, where=masked(i.where, prompt, tokens)) if isinstance(i, EditTensor) else i
        for i in interventions
    ]


def check_rows(interventions: Sequence[Intervention], rows: int) -> None:
    """Raise a ValueError for what is given by row, but not for each of `rows` rows."""
    for i in interventions:
        counts = _row_counts(i) if isinstance(i, EditTensor) else []
        for count in counts:
            if count not in (1, rows):
                raise ValueError(f"steering is given for {count} rows, there are {rows}")


def _row_counts(intervention: EditTensor) -> list[int]:
    where, edit = intervention.where, intervention.edit
    if isinstance(where, TokenMask):
        return [edit.row_count(), len(where.mask)]
    return [edit.row_count(), 1 if isinstance(where, Positions) else len(where)]


def is_per_row(intervention: EditTensor) -> bool:
    """Whether it differs from row to row of a batch."""
    alike = isinstance(intervention.where, Positions) and intervention.gate is None
    return not alike or intervention.edit.row_count() > 1


def opposite(interventions: Sequence[Intervention]) -> list[Intervention]:
    """The same edits the other way round; prompts, and edits without an opposite, are left out."""
    turned = [(i, i.edit.opposite()) for i in interventions if isinstance(i, EditTensor)]
    return [replace(i, edit=edit) for i, edit in turned if edit is not None]


def cancels(edits: Sequence[EditTensor]) -> bool:
    """Whether edits of one place add up to nothing, but for the rounding of their vectors.

    Additions to the same tokens only; any other edit is taken to leave something.
    """
    changes = [e.edit.change().cpu() for e in edits if isinstance(e.edit, Add)]
    alike = all(e.where == edits[0].where and e.gate is edits[0].gate for e in edits)
    if len(changes) < max(len(edits), 2) or not alike:
        return False
    rounding = 4 * max(torch.finfo(change.dtype).eps for change in changes)
    net = torch.stack([c.float() for c in torch.broadcast_tensors(*changes)])
    return bool((net.sum(0).abs() <= rounding * net.abs().sum(0)).all())


D = TypeVar("D")


def on_device(edit: D, device: torch.device) -> D:
    """A copy of a frozen dataclass with its tensors, also those of what it holds, on `device`."""
    values = {f.name: getattr(edit, f.name) for f in fields(edit)}  # type: ignore[arg-type]
    moved: dict[str, Any] = {
        name: value.to(device) if isinstance(value, Tensor) else on_device(value, device)
        for name, value in values.items()
        if isinstance(value, Tensor) or is_dataclass(value)
    }
    return replace(edit, **moved) if moved else edit  # type: ignore[type-var]


def moved(intervention: EditTensor, device: torch.device) -> EditTensor:
    """The same with its tensors on `device`."""
    return replace(intervention, edit=on_device(intervention.edit, device))


def describe(intervention: Intervention) -> dict[str, Any]:
    """What an intervention is, as JSON-like values; tensors by their SHA-256."""
    found = {"kind": type(intervention).__name__, **_plain(intervention)}
    # Runs from before there were gates can be resumed.
    return {k: v for k, v in found.items() if k != "gate" or v is not None}


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
