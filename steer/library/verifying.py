"""Measures a verdict anew, from the files and data that are here now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steer.effect import Effect
from steer.library.applying import steering_of
from steer.library.judging import JUDGING, digests, effect_on, equalled, held_out, kl
from steer.library.recipes import Recipes
from steer.vectors import Entry
from steer.vectors.cards import interval
from steer.vectors.catalogue import LIBRARY

# On another machine sums are made in another order.
SLACK = 1.05


@dataclass(frozen=True)
class Verified:
    """What was found.

    Attributes:
        effect: On the pairs of the verdict, with random controls.
        kl: On the verdict's half of the neutral texts, in nats a token.
        problems: Why the verdict is not reproduced; nothing where it is.
    """

    effect: Effect
    kl: float
    problems: Sequence[str]

    @property
    def reproduced(self) -> bool:
        """Whether it is."""
        return not self.problems

    def __str__(self) -> str:
        beaten = sum(value < self.effect.on_control_pairs for value in self.effect.controls)
        found = interval(vars(self.effect))
        controls = f"larger than {beaten} of {len(self.effect.controls)} random vectors"
        outcome = "reproduced" if self.reproduced else f"NOT reproduced: {'; '.join(self.problems)}"
        return f"{found} nats a pair, {controls}, KL {self.kl:.3f}: {outcome}"


def verify(entry: Entry, library: str | Path = LIBRARY) -> Verified:
    """Check an entry's files, its held-out pairs and its model, and measure its verdict anew.

    Args:
        entry: Of a library, or from elsewhere.
        library: Its recipes name the model, and how text is put before it.

    Raises:
        ValueError: There is no verdict of `build`, a file is not what its checksum says, the
            held-out pairs are not those of the verdict, or the model is another.
    """
    facts = entry.facts
    if not (entry.verdict.get("damage") and facts.get("held_out")):
        raise ValueError(
            f"{entry.name} has no verdict that can be measured anew: {entry.folder} was not made "
            "by `python -m steer.vectors build`"
        )
    recipes = Recipes.read(library)
    pairs = held_out([one["name"] for one in facts["held_out"]])
    if digests(pairs) != facts["held_out"]:
        names = ", ".join(pairs)
        raise ValueError(f"{entry.name}: the held-out pairs of {names} are not the verdict's")
    model = recipes.source.load()
    steps = steering_of(entry, model)
    found, diverged = effect_on(recipes, model, steps, pairs), kl(model, steps, JUDGING)
    return Verified(found, diverged, differences(entry.verdict, found, diverged))


def differences(verdict: Mapping[str, Any], found: Effect, diverged: float) -> list[str]:
    """Why what was found does not bear out a verdict; nothing where it does."""
    told, priced = verdict["effect"], verdict["damage"]["kl"]
    problems = []
    if not told["low"] <= found.mean <= told["high"]:
        problems.append(f"the verdict says {interval(told)}")
    if found.low <= 0:
        problems.append("the effect is not clearly above 0")
    problems += equalled(found)
    if diverged > SLACK * priced:
        problems.append(f"KL was {priced:.3f}")
    return problems
