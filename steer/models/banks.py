"""Edits that live in buffers, for graphs that are captured once and replayed.

A compiled graph does not see a hook that comes later, nor a vector that is put in another's place.
It follows what is written into its buffers. A `Bank` is in the graph from the start and steers
every token by the slot that the token is in; slots are filled, changed and cleared in place.
"""

from collections.abc import Sequence
from itertools import count
from typing import cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from steer.models.edits import Add, AddKeepingNorm, Directed, Edit, ProjectOut

# What a stage can do: the edits of one direction are cheap and stay in the graph, any other is
# called from it.
ABILITIES: dict[type, str] = {
    Add: "add",
    AddKeepingNorm: "add_keeping_norm",
    ProjectOut: "project_out",
}
ANY = "any"
# Slot of the tokens that are left alone.
NO_SLOT = 0

# Abilities of one stage.
Stage = Sequence[str]


def ability_of(edit: Edit) -> str:
    """What a stage must be able to do for `edit`."""
    return ABILITIES.get(type(edit), ANY)


class Bank(nn.Module):
    """Steers one place of a model.

    Attributes:
        index: [most tokens of a pass], int64, shared by all banks of a model: each token's slot.
        counts: [slots, 3], float64: tokens, tokens changed, sum of |change| / |residual|.
        acts: [slots], bool: whether a slot does anything here.
        filled: The slots for which it holds, known without asking a GPU.
        passes: Number of passes that had a token in such a slot.
        rests: Whether to do nothing, in passes that are not compiled and have no token to steer.
    """

    index: Tensor
    counts: Tensor
    acts: Tensor
    passes: Tensor

    def __init__(self, width: int, slots: int, stages: Sequence[Stage], index: Tensor) -> None:
        super().__init__()
        device = index.device
        # Apple's GPUs have no float64.
        exact = torch.float32 if device.type == "mps" else torch.float64
        self.register_buffer("index", index, persistent=False)
        counts = torch.zeros(slots, 3, dtype=exact, device=device)
        self.register_buffer("counts", counts, persistent=False)
        acts = torch.zeros(slots, dtype=torch.bool, device=device)
        self.register_buffer("acts", acts, persistent=False)
        passes = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("passes", passes, persistent=False)
        self.filled: set[int] = set()
        self.rests = False
        self.stages = nn.ModuleList(
            Calls(slots) if ANY in stage else Directions(width, slots, stage, device)
            for stage in stages
        )

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> Tensor:
        """`hidden` [..., d], each token edited by its slot.

        Args:
            hidden: A block's output.
            residual: What the model adds to it only later, where it keeps the two apart: the edit
                is of the sum, and its change goes into `hidden`.
        """
        # The compiler answers the first question for good: a graph always steers.
        if not torch.compiler.is_compiling() and self.rests:
            return hidden
        flat = hidden.flatten(0, -2)
        slot = self.index[: flat.shape[0]]
        before = flat.float()
        if residual is not None:
            before = before + residual.flatten(0, -2).float()
        after = before
        for stage in self.stages:
            after = stage(after, slot)
        change = after - before
        self._count(before, change, slot)
        edited = after if residual is None else flat.float() + change
        return edited.to(hidden.dtype).view_as(hidden)

    def _count(self, before: Tensor, change: Tensor, slot: Tensor) -> None:
        size = torch.linalg.vector_norm(change, dim=-1)
        ratio = size / torch.linalg.vector_norm(before, dim=-1).clamp_min(1e-12)
        found = torch.stack([torch.ones_like(size), (size > 0).float(), ratio], dim=-1)
        self.counts.index_add_(0, slot, found.to(self.counts.dtype))
        self.passes.add_(self.acts[slot].any())

    def write(self, slot: int, edits: Sequence[Edit]) -> None:
        """Let `slot` do `edits`, in order, from now on; nothing where there are none.

        Raises:
            ValueError: The stages cannot do that; nothing is changed then.
        """
        placed = placed_in(self.abilities(), summed(edits))
        for stage, edit in zip(self.stages, placed, strict=True):
            cast(Directions | Calls, stage).write(slot, edit)
        self.acts[slot] = bool(edits)
        (self.filled.add if edits else self.filled.discard)(slot)
        self.counts[slot] = 0

    def taken(self, slots: Sequence[int]) -> list[float]:
        """Counts of those of `slots` that act here, summed, and passes; they begin again at 0."""
        chosen = sorted(self.filled.intersection(slots))
        # One answer of a GPU, for which the processor waits.
        found = [*self.counts[chosen].sum(0), self.passes.to(self.counts.dtype)]
        found = torch.stack(found).tolist()
        self.counts[chosen] = 0
        self.passes.zero_()
        return found

    def abilities(self) -> list[Stage]:
        """What each stage can do."""
        return [cast(Directions | Calls, stage).abilities for stage in self.stages]


class Directions(nn.Module):
    """A stage of edits along one vector a slot."""

    change: Tensor
    keeps: Tensor
    unit: Tensor
    share: Tensor

    def __init__(self, width: int, slots: int, abilities: Stage, device: torch.device) -> None:
        super().__init__()
        self.abilities = tuple(abilities)
        shapes = {"change": (slots, width), "unit": (slots, width), "share": (slots, 1)}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, device=device), persistent=False)
        keeps = torch.zeros(slots, 1, dtype=torch.bool, device=device)
        self.register_buffer("keeps", keeps, persistent=False)

    def forward(self, hidden: Tensor, slot: Tensor) -> Tensor:
        """`hidden` [tokens, d], float32, edited."""
        # Python's branches are decided when the graph is made: what is not here costs nothing.
        after = hidden if self.abilities == ("project_out",) else hidden + self.change[slot]
        if "project_out" in self.abilities:
            unit = self.unit[slot]
            along = (after * unit).sum(-1, keepdim=True)
            after = after - self.share[slot] * along * unit
        if "add_keeping_norm" in self.abilities:
            tiny = torch.finfo(torch.float32).tiny
            factor = _norm(hidden) / _norm(after).clamp_min(tiny)
            after = after * torch.where(self.keeps[slot], factor, 1.0)
        return after

    def write(self, slot: int, edit: Edit | None) -> None:
        """Let `slot` do `edit`."""
        for buffer in (self.change, self.unit, self.share, self.keeps):
            buffer[slot] = 0
        if isinstance(edit, ProjectOut):
            vector = edit.vector.float()
            self.unit[slot] = vector / _norm(vector)
            self.share[slot] = edit.strength
        elif isinstance(edit, Directed):
            self.change[slot] = edit.change().float()
            self.keeps[slot] = isinstance(edit, AddKeepingNorm)


class Calls(nn.Module):
    """A stage of edits of any kind, which the graph calls; not for CUDA graphs that hold it."""

    def __init__(self, slots: int) -> None:
        super().__init__()
        self.abilities = (ANY,)
        self.edits: list[Edit | None] = [None] * slots
        self.number = next(_numbers)
        _stages[self.number] = self

    def forward(self, hidden: Tensor, slot: Tensor) -> Tensor:
        """`hidden` [tokens, d], float32, edited."""
        return _call(hidden, slot, self.number)

    def write(self, slot: int, edit: Edit | None) -> None:
        """Let `slot` do `edit`."""
        self.edits[slot] = edit


# By number, because a graph can hold a number, but not an object; a bank keeps its stages alive.
_stages: WeakValueDictionary[int, Calls] = WeakValueDictionary()
_numbers = count()


@torch.library.custom_op("steer::call", mutates_args=())
def _call(hidden: Tensor, slot: Tensor, number: int) -> Tensor:
    edited = hidden.clone()
    for used in slot.unique().tolist():
        edit = _stages[number].edits[used]
        if edit is not None:
            rows = slot == used
            edited[rows] = edit(hidden[rows][None])[0]
    return edited


@_call.register_fake
def _(hidden: Tensor, slot: Tensor, number: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(hidden)


def summed(edits: Sequence[Edit]) -> list[Edit]:
    """The same edits with neighbouring additions made one."""
    left: list[Edit] = []
    for edit in edits:
        if left and type(edit) is Add and type(left[-1]) is Add:
            before = left[-1].change().float()
            left[-1] = Add(before + edit.change().float().to(before.device))
        else:
            left.append(edit)
    return left


def placed_in(stages: Sequence[Stage], edits: Sequence[Edit]) -> list[Edit | None]:
    """For each stage the edit that it does: in order, each in the first stage that can.

    Raises:
        ValueError: One fits nowhere.
    """
    placed: list[Edit | None] = [None] * len(stages)
    free = 0
    for edit in edits:
        able = [n for n in range(free, len(stages)) if can(stages[n], edit)]
        if not able:
            wanted = [ability_of(one) for one in edits]
            there = [list(stage) for stage in stages]
            raise ValueError(f"the graph has the stages {there} here, the edits are {wanted}")
        placed[able[0]] = edit
        free = able[0] + 1
    return placed


def can(stage: Stage, edit: Edit) -> bool:
    """Whether a stage of these abilities can do `edit`."""
    return ANY in stage or ability_of(edit) in stage


def _norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values, dim=-1, keepdim=True)
