"""What vectors are judged by: held-out pairs, else folds of the training pairs; neutral text."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
from steer.files import fingerprint
from steer.models import ChatFormat, Intervention, SteeredModel

NEUTRAL = "neutral"
GIVEN = "the pairs given"
# In what metadata says of data: they have the name of a data set, and none of its rows.
OTHER_ROWS = "other_rows"
# Of each fold, so that judging does not take longer than training: 500 pairs make an interval that
# is narrow enough.
FOLD_PAIRS = 100

Folds = Mapping[str, Sequence[tuple[Sequence[Intervention], Sequence[Row]]]]


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
        names: Data sets, as of `judges_of`; the first with a held-out file of its own judges,
            unless no row of the folds is its own.
        folds: Without one: by method key, what each fold's own vectors do, and the fold's rows.
            What else is in force is so for every fold. At most FOLD_PAIRS rows of each count.
        loader: Reads the held-out file.
    """
    groups, source = _held_out(loader, model, chat, names, folds)
    effect = measure_effect(model, groups, source) if groups else None
    # It ships with the project, wherever the run's own data is.
    neutral = [str(row["text"]) for row in DatasetLoader().load_file(NEUTRAL, "valid")]
    return Judgement(effect, source, divergence(model, neutral, model.interventions()))


def has_held_out(loader: DatasetLoader, name: str, rows: Sequence[Row]) -> bool:
    """Whether the held-out file of the data set `name` can judge what was learnt from `rows`."""
    return loader.has(name, "valid") and not are_others(loader, name, rows)


def are_others(loader: DatasetLoader, name: str, rows: Sequence[Row]) -> bool:
    """Whether none of `rows` is of the data set `name`: data in memory may have any name.

    False where there are none, and where the data set's own are not on this machine.
    """
    if not rows or not loader.has(name, "train"):
        return False
    own = {fingerprint(dict(row)) for row in loader.load_file(name, "train")}
    return not any(fingerprint(dict(row)) in own for row in rows if isinstance(row, Mapping))


def judges_of(
    named: Sequence[str], learnt_from: Sequence[Mapping[str, Any]], in_memory: bool
) -> list[str]:
    """The data sets that may judge vectors by their held-out files.

    Args:
        named: In the config.
        learnt_from: What the vectors' metadata says of their data.
        in_memory: Whether the vectors were handed over: where the config names nothing that they
            have learnt from, it is of other vectors.
    """
    learnt = [data["name"] for data in learnt_from]
    other = in_memory and learnt and not set(named) & set(learnt)
    only_named_so = {data["name"] for data in learnt_from if data.get(OTHER_ROWS)}
    names = learnt if other else [*named, *learnt]
    return [name for name in names if name not in only_named_so]


def rows_digest(rows: Sequence[Row]) -> str:
    """SHA-256 of rows, in their order: what a vector's metadata says of its data."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(fingerprint(dict(row) if isinstance(row, Mapping) else row).encode("ascii"))
    return digest.hexdigest()


def _held_out(
    loader: DatasetLoader,
    model: SteeredModel,
    chat: ChatFormat,
    names: Iterable[str],
    folds: Folds,
) -> tuple[list[Group], str]:
    learnt = [row for parts in folds.values() for _, rows in parts for row in rows]
    for name in dict.fromkeys(names):
        if has_held_out(loader, name, learnt):
            rows = loader.load_file(name, "valid")
            return [Group.of(model, rows, chat, model.interventions())], f"held-out file of {name}"
    if not learnt:
        return [], "no held-out pairs"
    if len(folds) > 1:
        # The others have learnt from a fold's rows, or from other rows.
        return [], f"folds judge one method that was trained, and these are {', '.join(folds)}"
    ((key, parts),) = folds.items()
    if not all(map(is_pair, learnt)):
        return [], "the data are single texts, not pairs"
    groups = [
        Group.of(model, _evenly(rows), chat, _in_place(model, key, own)) for own, rows in parts
    ]
    part = f", {FOLD_PAIRS} of each" if any(len(rows) > FOLD_PAIRS for _, rows in parts) else ""
    return groups, f"{len(parts)} folds of the training pairs{part}"


def _evenly(rows: Sequence[Row]) -> list[Row]:
    """At most FOLD_PAIRS of them, from everywhere: data may be in order of what they are about."""
    count = min(FOLD_PAIRS, len(rows))
    return [rows[n * len(rows) // count] for n in range(count)]


def _in_place(model: SteeredModel, key: str, own: Sequence[Intervention]) -> list[Intervention]:
    """What is in force, with `own` in place of what the method `key` does."""
    return [s for k, steps in model.in_force.items() for s in (own if k == key else steps)]
