"""What a request is steered by, as far as all engines with slots know it alike."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from steer.engines.wire import pack
from steer.models import EditTensor
from steer.models.interventions import HEAD_INPUT, LOGITS
from steer.models.positions import EVERYWHERE
from steer.models.slots import Layout, along, stages_for

HEAD = (HEAD_INPUT, LOGITS)

Recipe = Sequence[EditTensor]


def acting(recipe: Recipe) -> list[EditTensor]:
    """The edits that change something."""
    return [edit for edit in recipe if not edit.is_idle()]


def layout_of(recipes: Sequence[Recipe]) -> Layout:
    """The stages that an engine must be started with to do `recipes`."""
    return stages_for([acting(recipe) for recipe in recipes])


def name_of(recipe: Recipe) -> str | None:
    """A recipe's name, the same for the same content; None for one that does nothing."""
    edits = acting(recipe)
    return hashlib.sha256(pack(edits)).hexdigest()[:32] if edits else None


def size_of(recipe: Recipe) -> int:
    """How many slots it takes."""
    return len({chosen for chosen in along(acting(recipe))[1] if any(chosen)})


def salt_of(recipe: Recipe, name: str, prompt: int) -> str:
    """What keeps a prefix cache apart for rows that are not steered alike.

    Where positions count, also for rows whose `prompt` has another length: what was an answer of
    one is the prompt of another, and steered otherwise.
    """
    alike = all(edit.where == EVERYWHERE for edit in recipe)
    return name if alike else f"{name}/{prompt}"


@dataclass
class Room:
    """Which recipes have slots, and who uses them.

    Attributes:
        slots: How many recipes can share.
        sizes: Of the recipes there, the one longest there first.
        requests: Of each of them, how many requests under way name it.
    """

    slots: int
    sizes: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    def leaving_for(self, size: int) -> list[str] | None:
        """Recipes to take out so that one of `size` slots has room; None where it must wait.

        Raises:
            ValueError: There is never room for that many.
        """
        self.check(size)
        missing, leaving = sum(self.sizes.values()) + size - self.slots, []
        for name in self.sizes:
            if missing <= 0:
                break
            if not self.requests[name]:
                leaving.append(name)
                missing -= self.sizes[name]
        return leaving if missing <= 0 else None

    def check(self, size: int) -> None:
        """Raise a ValueError for a size that there is never room for."""
        if size > self.slots:
            raise ValueError(
                f"a recipe takes {size} slots, there are {self.slots}: give its edits fewer "
                "different positions; with engine: vllm, or set vllm_slots higher"
            )

    def put(self, name: str, size: int) -> None:
        """Note that a recipe has slots now."""
        self.sizes[name], self.requests[name] = size, 0

    def forget(self, name: str) -> None:
        """Note that it has none any more."""
        del self.sizes[name], self.requests[name]
