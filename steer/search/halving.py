"""Successive halving: many settings on few pairs, then the better ones on more.

Jamieson and Talwalkar 2016 (https://arxiv.org/abs/1502.07943), with a third kept each time. A
setting that costs more than the limit allows is behind every one that does not.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from steer.effect import bootstrap
from steer.models import Intervention
from steer.progress import progress
from steer.search.candidates import Candidate
from steer.search.judging import Judge

log = logging.getLogger(__name__)

KEPT = 3  # one of so many
FIRST_PAIRS, FIRST_TEXTS = 6, 2
FINALISTS, FEWEST = 8, 3
# A divergence measured on a few texts may be off by as much.
SLACK = 1.5


@dataclass(frozen=True)
class Rung:
    """So many settings, on so many pairs and texts."""

    settings: int
    pairs: int
    texts: int


@dataclass
class Tried:
    """What is known of a setting.

    Attributes:
        candidate: The setting.
        changes: Of the margin, in nats, a number for each pair that it was tried on.
        divergence: Sum over `tokens` predictions, in nats.
        tokens: As above.
    """

    candidate: Candidate
    changes: list[float] = field(default_factory=list)
    divergence: float = 0.0
    tokens: int = 0

    @property
    def mean(self) -> float:
        """Change of the margin, in nats a pair."""
        return sum(self.changes) / len(self.changes)

    @property
    def kl(self) -> float:
        """In nats a token."""
        return self.divergence / self.tokens

    def interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mean."""
        return bootstrap(torch.tensor(self.changes))


def rungs(settings: int, pairs: int, texts: int) -> list[Rung]:
    """The rungs for so many settings, up to all pairs and texts."""
    found: list[Rung] = []
    some, few = min(FIRST_PAIRS, pairs), min(FIRST_TEXTS, texts)
    while some < pairs:
        found.append(Rung(settings, some, few))
        settings = max(math.ceil(settings / KEPT), min(settings, FINALISTS))
        some, few = some * KEPT, min(2 * few, texts)
    return [*found, Rung(settings, pairs, texts)]


def affordable(
    most: int, pairs: int, texts: int, allowed: float, pair_cost: float, text_cost: float
) -> int:
    """How many settings, `most` at most, halving can begin with for no more than `allowed`.

    Args:
        most: As above.
        pairs: That the last rung has.
        texts: That the last rung has.
        allowed: Seconds or tokens.
        pair_cost: Of one setting on one pair.
        text_cost: Of one setting on one text.
    """

    def cost(settings: int) -> float:
        total, before = 0.0, Rung(0, 0, 0)
        for rung in rungs(settings, pairs, texts):
            more = (rung.pairs - before.pairs) * pair_cost, (rung.texts - before.texts) * text_cost
            total, before = total + rung.settings * sum(more), rung
        return total

    least = min(most, FINALISTS // 2)
    return max((n for n in range(least, most + 1) if cost(n) <= allowed), default=least)


def halve(
    candidates: Sequence[Candidate],
    interventions: Callable[[Candidate], list[Intervention]],
    judge: Judge,
    max_kl: float,
    left_over: Callable[[], float],
) -> tuple[list[Tried], list[Tried]]:
    """Try `candidates`; all that was found, and of them those that came through, best first.

    Args:
        candidates: Settings.
        interventions: What each does.
        judge: Has the pairs and texts.
        max_kl: In nats a token.
        left_over: What may still be spent on this: where the machine is slower than it was when
            `candidates` were counted, fewer come through.
    """
    steps = rungs(len(candidates), len(judge.pairs), len(judge.texts))
    tried = left = [Tried(candidate) for candidate in candidates]
    before, cost = Rung(0, 0, 0), 0.0
    total = sum(rung.settings for rung in steps)
    with progress(total=total, what="trying settings", unit="setting") as bar:
        for number, rung in enumerate(steps):
            room = left_over()
            work = rung.pairs - before.pairs + rung.texts - before.texts
            # What the first rung costs is planned already, unless there is nothing left for it.
            most = int(room / (cost * work)) if cost else rung.settings * bool(room)
            left = left[: min(rung.settings, max(most, FEWEST))]
            _try(left, interventions, judge, before, rung)
            cost = (room - left_over()) / (len(left) * work)
            slack = 1.0 if number == len(steps) - 1 else SLACK
            left = sorted(left, key=lambda one, most=slack * max_kl: _place(one, most))
            before = rung
            bar.update(len(left))
    return [one for one in tried if one.changes], left


def _try(
    some: Sequence[Tried],
    interventions: Callable[[Candidate], list[Intervention]],
    judge: Judge,
    before: Rung,
    rung: Rung,
) -> None:
    """Try `some` on the pairs and texts that a rung has beside those of the one before."""
    names = [str(one.candidate) for one in some]
    settings = [interventions(one.candidate) for one in some]
    changes = judge.changes(names, settings, before.pairs, rung.pairs)
    diverged = [0.0] * len(some)
    if rung.texts > before.texts:
        diverged = judge.divergences(names, settings, before.texts, rung.texts)
    for one, more, sums in zip(some, changes, diverged, strict=True):
        one.changes += more
        one.divergence += sums
        one.tokens += judge.tokens(before.texts, rung.texts)


def _place(one: Tried, max_kl: float) -> tuple[bool, float]:
    """Sorts those within the limit by effect, and the others, behind them, by what they cost."""
    too_much = one.kl > max_kl
    return too_much, one.kl if too_much else -one.mean
