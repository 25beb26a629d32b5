"""Of the settings that came through, the one to take, and those that are as good."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steer.effect import bootstrap
from steer.models import Intervention
from steer.search.candidates import Candidate
from steer.search.damage import Answers, Damage
from steer.search.halving import Tried
from steer.search.settings import Limits

# Of the pick's effect: a smaller difference may be sure, and still of no use to anyone.
NEGLIGIBLE = 0.05


@dataclass(frozen=True)
class Chosen:
    """What was chosen, by the pairs and prompts that there are for choosing.

    Attributes:
        pick: The setting whose interval's lower end is highest, of those within the limits; None
            where there is none that does anything.
        band: Those within the limits that are not clearly worse than it, itself among them.
        damages: What each setting that was answered with costs.
        reason: Why there is no pick; empty where there is one.
    """

    pick: Candidate | None
    band: list[Candidate]
    damages: dict[Candidate, Damage]
    reason: str = ""


def choose(
    finalists: Sequence[Tried],
    interventions: Callable[[Candidate], list[Intervention]],
    answers: Answers,
    limits: Limits,
    at_once: int,
    left_over: Callable[[], float],
) -> Chosen:
    """Answer with the best, `at_once` settings at a time, until some are within the limits.

    Or until nothing is left over for it.
    """
    damages: dict[Candidate, Damage] = {}
    able = [one for one in finalists if one.mean > 0 and one.kl <= limits.max_kl]
    if not able:
        return Chosen(None, [], {}, _nothing(finalists, limits))
    good: list[Tried] = []
    for start in range(0, len(able), at_once):
        some = able[start : start + at_once]
        names = [str(one.candidate) for one in some]
        settings = [interventions(one.candidate) for one in some]
        prices, _ = answers.damage(names, settings, [one.kl for one in some])
        damages |= {one.candidate: price for one, price in zip(some, prices, strict=True)}
        good = [one for one in some if not damages[one.candidate].over(limits)]
        if good or not left_over():
            break
    if not good:
        over = damages[able[0].candidate].over(limits)
        return Chosen(
            None,
            [],
            damages,
            f"no setting stays within the limits; {able[0].candidate}: {', '.join(over)}",
        )
    best = max(good, key=lambda one: one.interval()[0])
    band = [one.candidate for one in good if one is best or not _is_worse(one, best)]
    return Chosen(best.candidate, band, damages)


def _nothing(finalists: Sequence[Tried], limits: Limits) -> str:
    within = [one for one in finalists if one.kl <= limits.max_kl]
    if not within:
        least = min(finalists, key=lambda one: one.kl)
        return f"every setting costs more than the limit: {least.candidate} has KL {least.kl:.2f}"
    best = max(within, key=lambda one: one.mean)
    return f"no setting makes matching answers likelier: {best.candidate} {best.mean:+.2f} nats"


def _is_worse(one: Tried, best: Tried) -> bool:
    """Whether the difference, pair by pair, is surely (95 %) more than negligible."""
    low, _ = bootstrap(torch.tensor(best.changes) - torch.tensor(one.changes))
    return low > NEGLIGIBLE * best.mean
