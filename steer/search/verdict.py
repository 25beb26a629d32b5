"""Is it real: what was chosen, on pairs that nothing was chosen by, against controls."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from steer.datasets import Row
from steer.effect import bootstrap, randomised
from steer.models import Intervention
from steer.models.interventions import opposite
from steer.progress import progress
from steer.search.budget import Budget
from steer.search.candidates import Candidate, Workshop
from steer.search.damage import Damage
from steer.search.judging import Judge
from steer.search.passes import Setting
from steer.search.settings import Limits
from steer.search.splitting import shuffled

log = logging.getLogger(__name__)

RANDOM, SHUFFLED = "random vectors", "shuffled labels"
CONTROLS = 20
FEWEST_CONTROLS = 10
CONTROL_PAIRS, FEWEST_CONTROL_PAIRS = 24, 6
# A control beats the setting where its effect is larger by this part: some methods learn the same
# direction whatever the labels say, and then rounding alone would decide.
TIE = 0.05
# The share that controls may take of what is left: the price comes behind them.
CONTROLLING = 0.5
# The share of the budget that trainings on shuffled labels may take.
SHUFFLING = 0.15


@dataclass(frozen=True)
class Measured:
    """Mean change of the margin with its 95 % paired bootstrap interval, in nats a pair."""

    mean: float
    low: float
    high: float
    pairs: int

    @classmethod
    def of(cls, changes: Sequence[float]) -> "Measured":
        """That of one change a pair."""
        values = torch.tensor(changes)
        return cls(float(values.mean()), *bootstrap(values), len(changes))


@dataclass
class Verdict:
    """Whether a setting works.

    Attributes:
        works: Its effect is above 0, no control's is larger, and its price is within the limits.
        reasons: Why not; and what else is to be known of it.
        effect: On the verdict's pairs.
        wrong_way: Share of those pairs whose margin it moves the other way.
        reversed: The effect of the same with its sign turned; None where it has no opposite.
        controls: Kind -> the mean effect of each control, on the first `control_pairs` pairs.
        control_pairs: How many.
        on_control_pairs: The setting's own mean effect on them.
        damage: Its price, on prompts and texts that nothing was chosen by; None where the effect
            is not clear, and there is nothing to pay for.
    """

    works: bool
    reasons: list[str]
    effect: Measured | None = None
    wrong_way: float | None = None
    reversed: Measured | None = None
    controls: dict[str, list[float]] = field(default_factory=dict)
    control_pairs: int = 0
    on_control_pairs: float | None = None
    damage: Damage | None = None

    @classmethod
    def nothing(cls, reason: str) -> "Verdict":
        """That no setting works, before there was one to look at."""
        return cls(False, [reason])

    def beaten(self, kind: str) -> int:
        """How many controls of a kind are not larger than the setting."""
        own = self.on_control_pairs or 0.0
        return sum(value <= own + TIE * abs(own) for value in self.controls[kind])


@dataclass(frozen=True)
class Court:
    """What a verdict is given with.

    Attributes:
        workshop: Makes vectors.
        judge: Has the verdict's pairs, and neutral texts that nothing was chosen by.
        rows: The pairs that the setting's vectors were made of.
        budget: Decides how many controls there can be.
    """

    workshop: Workshop
    judge: Judge
    rows: Sequence[Row]
    budget: Budget

    def effect(self, candidate: Candidate, setting: Setting) -> Verdict:
        """The effect and its controls; not yet the price."""
        names, settings = ["pick"], [list(setting)]
        if turned := opposite(setting):
            names, settings = [*names, "reversed"], [*settings, turned]
        spent = self.budget.spent
        changes = self.judge.changes(names, settings, 0, len(self.judge.pairs))
        cost = (self.budget.spent - spent) / (len(names) + 1) / len(self.judge.pairs)
        own = changes[0]
        verdict = Verdict(False, [], Measured.of(own))
        verdict.wrong_way = sum(change < 0 for change in own) / len(own)
        verdict.reversed = Measured.of(changes[1]) if len(changes) > 1 else None
        self._add_controls(verdict, candidate, setting, own, cost)
        verdict.reasons = against(verdict)
        verdict.works = not verdict.reasons
        verdict.reasons += _remarks(verdict)
        return verdict

    def _add_controls(
        self,
        verdict: Verdict,
        candidate: Candidate,
        setting: Setting,
        own: Sequence[float],
        cost: float,
    ) -> None:
        count, pairs = self._affordable(cost)
        made = {
            RANDOM: [randomised(self.workshop.model, setting, n) for n in range(count)],
            SHUFFLED: self._shuffles(candidate, count),
        }
        verdict.control_pairs = pairs
        verdict.on_control_pairs = sum(own[:pairs]) / pairs
        with progress(total=sum(map(len, made.values())), what="controls", unit="control") as bar:
            for kind, settings in made.items():
                names = [f"{kind} {number}" for number in range(len(settings))]
                changes = self.judge.changes(names, settings, 0, pairs)
                verdict.controls[kind] = [sum(each) / len(each) for each in changes]
                bar.update(len(settings))

    def _affordable(self, cost: float) -> tuple[int, int]:
        """How many controls of each kind there can be, and on how many pairs each."""
        most = min(CONTROL_PAIRS, len(self.judge.pairs))
        least, left = min(FEWEST_CONTROL_PAIRS, most), CONTROLLING * self.budget.left()
        pairs = min(max(int(left / (2 * CONTROLS * cost)) if cost else most, least), most)
        count = int(left / (2 * pairs * cost)) if cost else CONTROLS
        return min(max(count, FEWEST_CONTROLS), CONTROLS), pairs

    def _shuffles(self, candidate: Candidate, count: int) -> list[list[Intervention]]:
        """The same method, taught by pairs that are turned round at random."""
        found, method, began = [], candidate.method, self.budget.spent
        for seed in range(count):
            rows = shuffled(self.rows, seed)
            vectors = self.workshop.train(method, rows, [candidate.layer])
            found.append(self.workshop.interventions(candidate, vectors))
            if self.budget.spent - began > SHUFFLING * self.budget.total:
                log.info("%d trainings on shuffled labels: there is no time for more", len(found))
                break
        return found


def against(verdict: Verdict) -> list[str]:
    """Why a setting does not work, the price left aside; nothing where it does."""
    effect = verdict.effect
    assert effect is not None
    found = []
    if effect.low <= 0:
        found.append(
            f"the effect on {effect.pairs} unseen pairs is not clearly above 0: "
            f"{effect.mean:+.2f} nats [{effect.low:+.2f}, {effect.high:+.2f}]"
        )
    for kind, values in verdict.controls.items():
        if (beaten := verdict.beaten(kind)) < len(values):
            found.append(
                f"{len(values) - beaten} of {len(values)} controls are larger ({kind}): at most "
                f"{max(values):+.2f} nats, where it has {verdict.on_control_pairs:+.2f}"
            )
    return found


def _remarks(verdict: Verdict) -> list[str]:
    """What does not speak against the setting, and is to be known."""
    shuffles, own = verdict.controls[SHUFFLED], verdict.on_control_pairs or 0.0
    if verdict.beaten(SHUFFLED) == len(shuffles) and max(shuffles) > (1 - TIE) * own > 0:
        return [
            "Taught by shuffled labels the method finds the same direction: the labels decide its "
            "sign alone."
        ]
    return []


def add_price(verdict: Verdict, damage: Damage, limits: Limits) -> None:
    """Let the verdict know what the setting costs."""
    verdict.damage = damage
    if over := damage.over(limits):
        verdict.reasons += [f"the price on unseen prompts is over the limit: {', '.join(over)}"]
        verdict.works = False
