"""What vectors are judged by: held-out pairs, else folds of the training pairs; neutral text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from steer.datasets import DatasetLoader, Row, is_pair, named_rows
from steer.effect import (
    Effect,
    Group,
    bootstrap,
    divergence,
    margins,
    measure_effect,
    scorer_of,
)
from steer.models import ChatFormat, Intervention, SteeredModel

NEUTRAL = "neutral"
GIVEN = "the pairs given"

Folds = Sequence[tuple[Sequence[Intervention], Sequence[Row]]]


def effect_on(
    model: SteeredModel, pairs: Sequence[Row | tuple[str, ...]], chat: ChatFormat, controls: int = 0
) -> Effect:
    """The effect of what is in force on `model`, on `pairs` that no vector has learnt from.

    Args:
        model: Steered, as `applier.model` is after `apply_vectors`.
        pairs: Contrastive rows, with `matching`, `not_matching` and `question`, or tuples that
            stand for them, as `generate_vectors` takes them.
        chat: How questions are put, as `applier.settings.chat`.
        controls: How many random vectors of equal norm to compare with, on the first 12 pairs.

    Raises:
        ValueError: No pairs, or a row that is none.
    """
    group = Group.of(model, _rows(pairs), chat, model.interventions())
    return measure_effect(model, [group], GIVEN, controls)


def effects_on(
    model: SteeredModel,
    pairs: Sequence[Row | tuple[str, ...]],
    chat: ChatFormat,
    steerings: Sequence[Sequence[Intervention]],
) -> list[Effect]:
    """The effect of each of `steerings`, whatever is in force: as `effect_on`, without controls.

    For sweeps: what all have in common, the unsteered pass too, is computed once. `steerings` are
    what `model.interventions()` gives under one setting after another.
    """
    group = Group.of(model, _rows(pairs), chat, [])
    shared, found = scorer_of(model, group.pairs), []
    for steps in tqdm(steerings, desc="measuring effects", unit="steering"):
        own = group.under(steps)
        found.append(margins(shared if own is group.pairs else scorer_of(model, own), steps))
    plain = margins(shared, [])
    return [
        Effect(float(change.mean()), *bootstrap(change), len(pairs), [], 0, 0.0, GIVEN)
        for change in (steered - plain for steered in found)
    ]


def _rows(pairs: Sequence[Row | tuple[str, ...]]) -> list[Row]:
    if not pairs:
        raise ValueError("no pairs to measure the effect on: give rows of data that was held out")
    return named_rows({GIVEN: pairs})[GIVEN]


@dataclass(frozen=True)
class Judgement:
    """What was found of a steering.

    Attributes:
        effect: None where there are no held-out pairs.
        source: Where the pairs come from, or why there are none.
        kl: Mean KL(unsteered || steered) on neutral text, in nats a token.
    """

    effect: Effect | None
    source: str
    kl: float


def judge(
    model: SteeredModel,
    chat: ChatFormat,
    names: Iterable[str],
    folds: Folds,
    loader: DatasetLoader,
) -> Judgement:
    """Measure what is in force on `model`.

    Args:
        model: Steered.
        chat: How questions are put.
        names: Data sets; the first with a held-out file of its own judges.
        folds: Without one: what each fold's own vectors do, and the fold's rows.
        loader: Reads the held-out file.
    """
    groups, source = _held_out(loader, model, chat, names, folds)
    effect = measure_effect(model, groups, source) if groups else None
    # It ships with the project, wherever the run's own data is.
    neutral = [str(row["text"]) for row in DatasetLoader().load_file(NEUTRAL, "valid")]
    return Judgement(effect, source, divergence(model, neutral, model.interventions()))


def _held_out(
    loader: DatasetLoader,
    model: SteeredModel,
    chat: ChatFormat,
    names: Iterable[str],
    folds: Folds,
) -> tuple[list[Group], str]:
    for name in dict.fromkeys(names):
        if loader.has(name, "valid"):
            rows = loader.load_file(name, "valid")
            return [Group.of(model, rows, chat, model.interventions())], f"held-out file of {name}"
    if not folds:
        return [], "no held-out pairs"
    if not all(is_pair(row) for _, rows in folds for row in rows):
        return [], "the data are single texts, not pairs"
    groups = [Group.of(model, rows, chat, steps) for steps, rows in folds]
    return groups, f"{len(folds)} folds of the training pairs"
