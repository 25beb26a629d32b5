"""Recipes of requests in the slots of banks: which slot each token of a row is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from steer.models.banks import ABILITIES, ANY, NO_SLOT, Bank, Stage, ability_of, placed_in, summed
from steer.models.edits import Edit
from steer.models.interventions import EditTensor, Place, is_per_row
from steer.models.positions import Positions


@dataclass(frozen=True)
class Line:
    """The slots along a row, constant between `breaks`.

    Attributes:
        breaks: Ascending, counted from the first generated token, as `Positions` are.
        slots: One more than `breaks`: before the first, between two, from the last on.
    """

    breaks: np.ndarray
    slots: np.ndarray

    def at(self, first: int, tokens: int) -> np.ndarray:
        """The slots of `tokens` tokens from number `first`, counted as `breaks` are."""
        numbers = np.arange(first, first + tokens)
        return self.slots[np.searchsorted(self.breaks, numbers, side="right")]


# Stages by place.
Layout = dict[Place, Sequence[Stage]]

NOTHING = Line(np.empty(0, dtype=np.int64), np.array([NO_SLOT]))


class SlotBook:
    """Keeps recipes in the slots of a model's banks.

    A recipe takes a slot for each set of its edits that is in force somewhere along a row: one
    where all act everywhere. The same calls in the same order give the same slots, also in another
    process that has other places of the model.

    Args:
        banks: Those of this process, by place.
        slots: How many each of them has.
    """

    def __init__(self, banks: Mapping[Place, Bank], slots: int) -> None:
        self.banks = banks
        self.size = slots
        self.lines: dict[str, Line] = {}
        self._free = list(range(slots - 1, NO_SLOT, -1))

    def add(self, name: str, edits: Sequence[EditTensor]) -> list[Place]:
        """Put a recipe into slots; the places of it that are in this process.

        Raises:
            ValueError: The name is taken, no slot is free, positions are a mask or differ between
                rows, or a bank cannot do an edit. Nothing is changed then.
        """
        if name in self.lines:
            raise ValueError(f"there is a recipe {name!r} already")
        breaks, active = along(edits)
        sets = [chosen for chosen in dict.fromkeys(active) if any(chosen)]
        if len(sets) > len(self._free):
            raise ValueError(
                f"no room for recipe {name!r}: it takes {len(sets)} of {self.size - 1} slots, "
                f"{len(self._free)} are free; take another out, or start with more slots"
            )
        self._check(edits, sets)
        slots = {chosen: self._free.pop() for chosen in sets}
        for chosen, slot in slots.items():
            for place, bank in self.banks.items():
                bank.write(slot, _at(place, edits, chosen))
        numbers = np.array([slots.get(chosen, NO_SLOT) for chosen in active])
        self.lines[name] = Line(breaks, numbers)
        wanted = {edit.place for edit in edits}
        return [place for place in self.banks if place in wanted]

    def remove(self, name: str) -> None:
        """Take a recipe out of its slots, which steer nothing then."""
        for slot in self.slots_of(name):
            self._free.append(slot)
            for bank in self.banks.values():
                bank.write(slot, [])
        del self.lines[name]

    def slots_of(self, name: str) -> list[int]:
        """The slots that a recipe has, each once.

        Raises:
            KeyError: There is no recipe of that name.
        """
        return sorted(set(self.lines[name].slots.tolist()) - {NO_SLOT})

    def _check(self, edits: Sequence[EditTensor], sets: Sequence[tuple[bool, ...]]) -> None:
        for place, bank in self.banks.items():
            for chosen in sets:
                try:
                    placed_in(bank.abilities(), summed(_at(place, edits, chosen)))
                except ValueError as error:
                    raise ValueError(f"at {place}: {error}") from error


def along(edits: Sequence[EditTensor]) -> tuple[np.ndarray, list[tuple[bool, ...]]]:
    """Where along a row another set of `edits` begins to act, and the sets, one more than that.

    Raises:
        ValueError: Positions that are a mask, or edits that differ from row to row.
    """
    if any(edit.gate is not None for edit in edits):
        raise ValueError(
            "a compiled graph knows no gates: set engine: hf, compile: false, or leave gate out"
        )
    for edit in edits:
        if not isinstance(edit.where, Positions) or is_per_row(edit):
            raise ValueError(
                "a compiled graph steers ranges of positions, and a recipe is of one row: got "
                f"{type(edit.where).__name__} and {edit.edit.row_count()} rows"
            )
    spans = [edit.where for edit in edits if isinstance(edit.where, Positions)]
    ends = {end for span in spans for end in (span.start, span.stop) if end is not None}
    breaks = sorted(ends)
    firsts = [-np.inf, *breaks]
    active = [tuple(_holds(span, first) for span in spans) for first in firsts]
    return np.array(breaks, dtype=np.int64), active


def _holds(span: Positions, number: float) -> bool:
    after = span.start is None or number >= span.start
    return after and (span.stop is None or number < span.stop)


def _at(place: Place, edits: Sequence[EditTensor], chosen: Sequence[bool]) -> list[Edit]:
    return [e.edit for e, on in zip(edits, chosen, strict=True) if on and e.place == place]


def stages_for(recipes: Sequence[Sequence[EditTensor]]) -> Layout:
    """The fewest stages, by place, in which each of `recipes` fits."""
    found: Layout = {}
    for edits in recipes:
        places = dict.fromkeys(edit.place for edit in edits)
        for chosen in along(edits)[1]:
            acting = {place: summed(_at(place, edits, chosen)) for place in places}
            own: Layout = {p: [(ability_of(e),) for e in some] for p, some in acting.items()}
            found = joined(found, own)
    return found


def joined(one: Layout, other: Layout) -> Layout:
    """Stages that can do what those of `one` can, and those of `other`."""
    return {
        place: [
            _able({*first, *second})
            for first, second in zip_longest(one.get(place, ()), other.get(place, ()), fillvalue=())
        ]
        for place in dict.fromkeys((*one, *other))
    }


def _able(abilities: set[str]) -> Stage:
    # One that calls any edit needs no other way.
    order = [*ABILITIES.values(), ANY]
    return (ANY,) if ANY in abilities else tuple(sorted(abilities, key=order.index))
