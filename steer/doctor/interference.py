"""Check of several methods at once: what each does to the others."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from steer.activations import contrast
from steer.datasets import Row, is_pair
from steer.doctor.base import Result, failure, ok, unchecked, warning
from steer.doctor.crossing import (
    Change,
    budget_at,
    change_of,
    cosines_at,
    predicted,
    suggested_order,
)
from steer.doctor.patient import Patient
from steer.effect import margins, pairs_of, scorer_of
from steer.methods.caa import TrainCAA
from steer.models import EditTensor, Intervention

PAIRS = 8
# Cosines from here on: one is mostly the other; and this much against each other.
ALIKE, AGAINST = 0.7, -0.3
# Shares of the residual; see `steer.doctor.steering`.
STRONG, ABSURD = 0.5, 1.0
# What is left of an effect beside the other methods.
LEFT = 0.5


@dataclass(frozen=True)
class Crossed:
    """Effects on the pairs of one method, in nats a pair.

    Attributes:
        key: The method whose pairs they are.
        pairs: Where they come from.
        alone: Method -> its effect alone.
        together: Effect of all.
        predicted: Method -> what its effect should be, by projection; not of `key`.
    """

    key: str
    pairs: str
    alone: Mapping[str, float]
    together: float
    predicted: Mapping[str, float | None]

    @property
    def expected(self) -> float:
        """The sum of what each does alone."""
        return sum(self.alone.values())


def interference(patient: Patient) -> Iterator[Result]:
    """Cosines, norms, predicted and measured effects on each other's pairs, and an order."""
    steps = patient.steps or {}
    acting = {key: some for key, some in steps.items() if _acts(some)}
    if len(acting) < 2:
        yield ok("no two methods act at once")
        return
    changes = {key: change_of(some) for key, some in acting.items()}
    yield from _cosines(changes)
    yield from _budget(changes, patient)
    crossed = [one for key in acting if (one := cross(patient, key, changes)) is not None]
    for one in crossed:
        yield _verdict(one)
    if not crossed:
        yield unchecked("no vector knows pairs: effects on each other are not measured")
    yield _order(list(acting), suggested_order(acting))


def _acts(steps: Sequence[Intervention]) -> bool:
    return any(isinstance(step, EditTensor) and not step.is_idle() for step in steps)


def _cosines(changes: Mapping[str, Change]) -> Iterator[Result]:
    for layer, pairs in cosines_at(changes).items():
        for (one, other), cosine in pairs.items():
            found = f"layer {layer}: what {one} and {other} add has a cosine of {cosine:+.2f}"
            if cosine >= ALIKE:
                yield warning(
                    f"{found}: they are mostly the same, and add up",
                    "use one of them, or lower both multipliers",
                )
            elif cosine <= AGAINST:
                yield warning(
                    f"{found}: they take each other back",
                    'move one to another layer, or merge them with TIES: "methods=[merge_vector]"',
                )
            else:
                yield ok(found)


def _budget(changes: Mapping[str, Change], patient: Patient) -> Iterator[Result]:
    tally = patient.tally
    norms = {n: tally[n].usual_residual() for n in tally if isinstance(n, int)}
    for layer, (total, net) in budget_at(changes, {n: r for n, r in norms.items() if r}).items():
        found = f"layer {layer}: {total:.0%} of the residual's norm are added, {net:.0%} in sum"
        do = f"multiply all multipliers of layer {layer} by {0.2 / net:.2g}" if net else ""
        if net > ABSURD:
            yield failure(f"{found}: text breaks long before that", do)
        elif net > STRONG:
            yield warning(f"{found}: text is likely to break", do)
        else:
            yield ok(found)


def cross(patient: Patient, key: str, changes: Mapping[str, Change]) -> Crossed | None:
    """What each method, alone and together, does to the pairs of `key`; None where it has none."""
    rows, where = _pairs(patient, key)
    if not rows:
        return None
    model, chat, steps = patient.ready, patient.run.settings.chat, patient.steps or {}
    scorer = scorer_of(model, pairs_of(model, rows, chat))
    plain = margins(scorer, [])

    def effect(keys: Sequence[str]) -> float:
        every = [step for one in keys for step in steps[one]]
        return float((margins(scorer, every) - plain).mean())

    alone = {one: effect([one]) for one in changes}
    differences = _contrast(patient, rows, changes)
    others = {
        one: predicted(alone[key], change, changes[key], differences)
        for one, change in changes.items()
        if one != key
    }
    return Crossed(key, where, alone, effect(list(changes)), others)


def _pairs(patient: Patient, key: str) -> tuple[Sequence[Row], str]:
    for name in patient.data_of(key):
        for split, kind in (("valid", "held-out"), ("train", "training")):
            try:
                rows = patient.rows(name, split)[:PAIRS]
            except (ValueError, OSError):
                continue
            if rows and all(map(is_pair, rows)):
                return rows, f"{len(rows)} {kind} pairs of {name}"
    return [], ""


def _contrast(
    patient: Patient, rows: Sequence[Row], changes: Mapping[str, Change]
) -> dict[int, Tensor]:
    layers = sorted({n for change in changes.values() for n in change})
    if not layers:
        return {}
    reader = TrainCAA(layers=layers, **vars(patient.run.settings.chat))
    return contrast(patient.ready, *reader.sides(patient.ready, rows), layers).means()


def _verdict(one: Crossed) -> Result:
    own = one.alone[one.key]
    others = ", ".join(
        f"{key} alone {effect:+.2f}{_foreseen(one.predicted[key])}"
        for key, effect in one.alone.items()
        if key != one.key
    )
    found = (
        f"{one.pairs}: {one.key} alone {own:+.2f} nats, {others}, together {one.together:+.2f} "
        f"(sum {one.expected:+.2f})"
    )
    culprit = min((k for k in one.alone if k != one.key), key=lambda k: one.alone[k] * own)
    do = f"lower the multiplier of {culprit}, or move it to another layer"
    if own * one.together < 0:
        return failure(f"{found}: the others turn it round", do)
    if abs(one.together) < LEFT * abs(own):
        return warning(f"{found}: less than half of it is left beside the others", do)
    return ok(found)


def _foreseen(value: float | None) -> str:
    return "" if value is None else f" (predicted {value:+.2f})"


def _order(given: list[str], order: list[str]) -> Result:
    if given == order:
        return ok(f"order: {', '.join(given)}, as it is")
    return warning(
        f"order: {', '.join(given)}: what is removed after something was added takes part of it",
        f"list the method files in the order {', '.join(order)}",
    )
