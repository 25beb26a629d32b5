"""How much of everything a budget allows, from what a first pass costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steer.search.budget import Budget
from steer.search.halving import FINALISTS, affordable
from steer.search.judging import Judge

MEASURED = 8  # pairs that the first pass reads
# Shares of the budget. What is left goes to the verdict.
READING, TRYING, CHOOSING, ANSWERING, VERDICT = 0.2, 0.3, 0.1, 0.15, 0.12
TRIED_BY, ANSWERED_BY = 0.55, 0.75
# A steered pass skips the blocks below; how much of one is left, about, layers taken together.
STEERED = 0.65
# A token that is generated costs so many that are read: weights are fetched for few rows.
GENERATED = 2.5
FEWEST_PAIRS, FEWEST_PROMPTS, MOST_PROMPTS = 12, 4, 16
CHECKED = 5  # settings that are answered with at least, the unsteered one included


@dataclass(frozen=True)
class Plan:
    """How many of each.

    Attributes:
        settings: Tried at first.
        train: Pairs learnt from.
        select: Pairs that settings are compared on.
        verdict: Pairs of the verdict.
        prompts: Answered under each setting that is left.
        checked: Settings answered with at once.
    """

    settings: int
    train: int
    select: int
    verdict: int
    prompts: int
    checked: int

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return asdict(self)


def plan(budget: Budget, judge: Judge, settings: int, tokens: int) -> Plan:
    """What `budget` allows.

    Args:
        budget: As yet hardly spent.
        judge: Has the pairs that settings are compared on, and texts.
        settings: That there are to try.
        tokens: New ones of an answer.
    """
    few, before, total = judge.pairs[:MEASURED], budget.spent, budget.total
    judge.margins(few, [])
    read = sum(len(p.prompt) * 2 + len(p.matching) + len(p.not_matching) for p in few)
    whole = (budget.spent - before) / len(few)
    pair, token = STEERED * whole, (budget.spent - before) / read
    text = token * judge.tokens(0, len(judge.texts)) / len(judge.texts)
    select = _between(CHOOSING * total / (FINALISTS * pair), FEWEST_PAIRS, len(judge.pairs))
    answer = token * (_mean_length(judge) + GENERATED * tokens)
    prompts = _between(ANSWERING * total / (CHECKED * answer), FEWEST_PROMPTS, MOST_PROMPTS)
    checked = _between(ANSWERING * total / (prompts * answer) - 1, CHECKED - 1, FINALISTS)
    return Plan(
        settings=affordable(settings, select, len(judge.texts), TRYING * total, pair, text),
        train=max(int(READING * total / whole), FEWEST_PAIRS),
        select=select,
        verdict=max(int(VERDICT * total / (whole + 2 * pair)), FEWEST_PAIRS),
        prompts=prompts,
        checked=checked,
    )


def _between(value: float, least: int, most: int) -> int:
    return min(max(int(value), least), most)


def _mean_length(judge: Judge) -> float:
    lengths: Sequence[int] = [len(pair.prompt) for pair in judge.pairs]
    return sum(lengths) / len(lengths)
