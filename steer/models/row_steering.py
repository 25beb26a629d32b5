"""Interventions of one row each, put together for a batch of these rows."""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steer.models.edits import Add, AddKeepingNorm, Directed, Edit, LowRank, ProjectOut
from steer.models.interventions import EditTensor, Intervention, Place
from steer.models.positions import NOWHERE, Positions, TokenMask, Where


def join_rows(rows: Sequence[Sequence[Intervention]]) -> list[EditTensor]:
    """One list of interventions for a batch whose row n is steered by `rows[n]` alone.

    The inverse of `take_rows`. What several rows do alike is done once; a vector for each row is
    stacked; what can be neither is done once for each edit, to its rows. Every row's edits of a
    place keep their order.

    Args:
        rows: Each row's own interventions, given for one row; prompts among them are left out.
    """
    by_place: dict[Place, list[list[EditTensor]]] = {}
    for number, interventions in enumerate(rows):
        for one in interventions:
            if isinstance(one, EditTensor):
                by_place.setdefault(one.place, [[] for _ in rows])[number].append(one)
    ranks = [rank for place in by_place.values() for rank in zip_longest(*place)]
    return [joined for rank in ranks for joined in _joined(rank)]


def _joined(rank: Sequence[EditTensor | None]) -> list[EditTensor]:
    """Those that stand at the same number in the lists of their rows; None where a list is over."""
    groups: dict[Hashable, dict[int, EditTensor]] = {}
    for row, one in enumerate(rank):
        if one is not None:
            groups.setdefault(_kind(one), {})[row] = one
    return [_one(group, len(rank)) for group in groups.values()]


def _kind(one: EditTensor) -> Hashable:
    """Equal for what one edit can do."""
    edit, where = one.edit, (isinstance(one.where, TokenMask), id(one.gate))
    if isinstance(edit, Add | AddKeepingNorm | ProjectOut):
        return type(edit), where, edit.vector.dtype, edit.vector.device
    if isinstance(edit, LowRank):
        return LowRank, where, id(edit.left), id(edit.right)
    return id(edit), where


def _one(group: dict[int, EditTensor], count: int) -> EditTensor:
    first = next(iter(group.values()))
    rows = [group.get(row) for row in range(count)]
    edit = _edit([first.edit if one is None else one.edit for one in rows])
    if isinstance(first.where, TokenMask):
        return replace(first, edit=edit, where=_mask(rows))
    return replace(first, edit=edit, where=_where(rows))


def _edit(edits: Sequence[Edit]) -> Edit:
    """One for a batch; rows that are steered nowhere have any."""
    keys = [_value(edit) for edit in edits]
    distinct = dict(zip(keys, edits, strict=True))
    first = edits[0]
    if len(distinct) == 1:
        return first
    each = list(distinct.values())
    places = {key: place for place, key in enumerate(distinct)}
    index = torch.tensor([places[key] for key in keys])
    if isinstance(first, LowRank):
        strengths = torch.stack([cast(LowRank, one).strength.flatten() for one in each])
        return replace(first, strength=strengths[index.to(strengths.device)])
    directed = cast(list[Directed], each)
    if isinstance(first, ProjectOut):
        strength = torch.tensor([float(one.strength) for one in directed])
        vectors = torch.stack([one.vector.flatten() for one in directed])
        return ProjectOut(vectors[index.to(vectors.device)], strength[index].to(vectors.device))
    changes = torch.stack([one.change().flatten() for one in directed])
    return replace(cast(Add, first), vector=changes[index.to(changes.device)], strength=1.0)


def _value(edit: Edit) -> Hashable:
    """Equal for edits that do the same, as far as that costs nothing to see."""
    if isinstance(edit, Directed) and not isinstance(edit.strength, Tensor):
        return id(edit.vector), edit.strength
    return id(edit)


def _where(rows: Sequence[EditTensor | None]) -> Where:
    given = [
        NOWHERE if one is None else cast(Positions | list[Positions], one.where) for one in rows
    ]
    each = [one if isinstance(one, Positions) else one[0] for one in given]
    return each[0] if len(set(each)) == 1 else each


def _mask(rows: Sequence[EditTensor | None]) -> TokenMask:
    given = [None if one is None else cast(TokenMask, one.where).mask[0] for one in rows]
    none = next(mask for mask in given if mask is not None)[:0]
    return TokenMask(pad_sequence([none if m is None else m for m in given], batch_first=True))
