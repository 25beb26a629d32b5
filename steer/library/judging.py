"""What a vector does to held-out pairs and neutral text, and at what price in answers."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steer.datasets import DatasetLoader, Row, input_of
from steer.effect import CONTROLS, Effect, Group, divergence, measure_effect
from steer.journal import Journal
from steer.judging import rows_digest
from steer.library.recipes import Recipe, Recipes
from steer.models import Answer, Intervention, SteeredModel
from steer.search.budget import Budget
from steer.search.damage import Answers, Damage, harmless_prompts
from steer.search.judging import neutral_texts
from steer.search.settings import SearchSettings
from steer.search.store import Store
from steer.search.verdict import RANDOM, Measured, Verdict, add_price, against

PROMPTS, HARMLESS, SHOWN = 12, 6, 3
# As a search has it: one half of the neutral texts to choose by, the other for verdicts.
CHOOSING, JUDGING = slice(0, None, 2), slice(1, None, 2)


def held_out(names: Sequence[str]) -> dict[str, list[Row]]:
    """The held-out pairs of each data set."""
    return {name: DatasetLoader().load_file(name, "valid") for name in names}


def digests(pairs: dict[str, list[Row]]) -> list[dict[str, object]]:
    """What metadata says of the pairs that judged."""
    return [
        {"name": name, "rows": len(rows), "sha256": rows_digest(rows)}
        for name, rows in pairs.items()
    ]


def effect_on(
    recipes: Recipes,
    model: SteeredModel,
    steps: Sequence[Intervention],
    pairs: dict[str, list[Row]],
    controls: int = CONTROLS,
) -> Effect:
    """What `steps` do to pairs of all data sets together."""
    groups = [Group.of(model, rows, recipes.chat, steps) for rows in pairs.values()]
    return measure_effect(model, groups, f"held-out file of {' and '.join(pairs)}", controls)


def kl(model: SteeredModel, steps: Sequence[Intervention], part: slice) -> float:
    """KL(unsteered || steered) on half of the neutral texts, in nats a token."""
    return divergence(model, neutral_texts()[part], steps)


def verdict_on(
    recipes: Recipes,
    recipe: Recipe,
    model: SteeredModel,
    steps: Sequence[Intervention],
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The verdict on steps that no pair has chosen, as a search gives it, and a few answers."""
    pairs = held_out(recipe.data)
    verdict = verdict_of(effect_on(recipes, model, steps, pairs))
    each: dict[str, Measured] = {}
    if len(pairs) > 1:
        parts = {name: {name: rows} for name, rows in pairs.items()}
        each = {n: _measured(effect_on(recipes, model, steps, p, 0)) for n, p in parts.items()}
        verdict.reasons += [
            f"the effect on the pairs of {name} is not clearly above 0: {one.low:+.2f} nats"
            for name, one in each.items()
            if one.low <= 0
        ]
    verdict.works = not verdict.reasons
    settings = recipes.search_settings(recipe)
    price, shown = _price(settings, model, steps, recipe.data)
    add_price(verdict, price, settings.limits)
    by_data = {name: asdict(one) for name, one in each.items()}
    return asdict(verdict) | ({"by_data": by_data} if by_data else {}), shown


def verdict_of(found: Effect) -> Verdict:
    """The verdict on an effect, its price and single data sets left aside.

    Shuffled labels are no control here: nothing was learnt from labels.
    """
    verdict = Verdict(False, [], _measured(found))
    verdict.controls, verdict.control_pairs = {RANDOM: found.controls}, found.control_pairs
    verdict.on_control_pairs = found.on_control_pairs
    verdict.reasons = against(verdict)
    if verdict.beaten(RANDOM) == len(found.controls):
        verdict.reasons += equalled(found)
    return verdict


def equalled(found: Effect) -> list[str]:
    """That a random vector does as much; nothing where none does.

    A search lets a control be a little larger, for the sake of shuffled labels: a vector of the
    library may not be.
    """
    most = max(found.controls)
    return [f"a random vector does {most:+.2f}"] if most >= found.on_control_pairs else []


def _measured(effect: Effect) -> Measured:
    return Measured(effect.mean, effect.low, effect.high, effect.pairs)


def _price(
    settings: SearchSettings,
    model: SteeredModel,
    steps: Sequence[Intervention],
    names: Sequence[str],
) -> tuple[Damage, list[dict[str, str]]]:
    """Of the answers to the prompts of all data sets; and the first answers of each."""
    share = PROMPTS // len(names)
    rows = [DatasetLoader().load_file(name, "generation")[:share] for name in names]
    inputs = [input_of(row, n) for some in rows for n, row in enumerate(some, start=1)]
    with scratch_store(settings) as store:
        given = (settings.chat, settings.max_new_tokens, store, "verdict")
        answers = Answers(model, inputs, harmless_prompts()[:HARMLESS], *given)
        (price,), made = answers.damage(["vector"], [steps], [kl(model, steps, JUDGING)])
    return price, examples(inputs, *made)


@contextmanager
def scratch_store(settings: SearchSettings) -> Iterator[Store]:
    """Where a search's parts keep what they find, for as long as it is open."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        Journal(Path(scratch, "found.jsonl"), {}, resume=False) as journal,
    ):
        yield Store(journal, Budget(settings.budget_minutes))


def examples(
    inputs: Sequence[str], plain: Sequence[Answer], steered: Sequence[Answer]
) -> list[dict[str, str]]:
    """Answers side by side, of prompts here and there in the list."""
    places = range(0, len(inputs), max(len(inputs) // SHOWN, 1))[:SHOWN]
    return [
        {"input": inputs[n], "unsteered": plain[n].text, "steered": steered[n].text} for n in places
    ]
