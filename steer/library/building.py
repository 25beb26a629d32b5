"""Makes the library: each vector by its recipe, judged, and kept only where it works."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from steer.datasets import DatasetLoader
from steer.files import find
from steer.generator import BaseVectorGenerator
from steer.library.applying import applied
from steer.library.judging import CHOOSING, held_out, kl, scratch_store, verdict_on
from steer.library.keeping import Draft, keep, note_left_out, said, write_page
from steer.library.recipes import Recipe, Recipes
from steer.method_files import PATHS, shipped_file
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.passages import remembered_readings
from steer.search.candidates import Workshop
from steer.search.halving import halve
from steer.search.judging import Judge, neutral_texts
from steer.search.splitting import split
from steer.vectors import Vectors
from steer.vectors.catalogue import LIBRARY

# What halving may spend: all that it asks for.
PLENTY = 1e9


def build(library: str | Path = LIBRARY, names: Sequence[str] = ()) -> Iterator[str]:
    """Make the vectors of these names anew, or all; yields a line on each.

    What does not work is taken out, and stands with the reasons in `left_out.json`.

    Raises:
        ValueError: An unknown name, or recipes that are wrong.
    """
    folder = find(library, "vector library")
    recipes = Recipes.read(folder)
    chosen = recipes.chosen(names)
    model = recipes.source.load()
    for name, recipe in chosen.items():
        draft = (_learnt if recipe.method is None else _made)(recipes, recipe, model)
        place = folder / Path(recipes.model_name_or_path).name / name
        if draft.works:
            keep(draft, place, said(recipes, recipe))
        else:
            shutil.rmtree(place, ignore_errors=True)
        note_left_out(folder, name, recipe, draft)
        write_page(folder)
        yield f"{name}: {draft}"


def _learnt(recipes: Recipes, recipe: Recipe, model: SteeredModel) -> Draft:
    """Of the first data set's pairs, at the layer and dose that are best on a third of them."""
    settings, source = recipes.search_settings(recipe), recipe.data[0]
    rows, pairs = DatasetLoader().load_file(source, "train"), held_out([source])[source]
    splits = split(rows, pairs, settings.seed)
    workshop = Workshop(settings, source, model, settings.layers or range(model.depth))
    (method,) = settings.chosen
    with remembered_readings(), scratch_store(settings) as store:
        vectors = workshop.train(method, splits.train, workshop.layers)
        texts = neutral_texts()[CHOOSING]
        judge = Judge(model, splits.select, texts, settings.chat, store, "select")
        interventions = partial(workshop.interventions, vectors=vectors)
        _, best = halve(workshop.grid(), interventions, judge, settings.max_kl, lambda: PLENTY)
        pick = best[0].candidate
        with tempfile.TemporaryDirectory() as scratch:
            place, made = workshop.write(pick, [*splits.train, *splits.select], Path(scratch))
    values = workshop.values(pick)
    draft = Draft(method, place.name, made, values)
    return _judged(draft, recipes, recipe, model)


def _made(recipes: Recipes, recipe: Recipe, model: SteeredModel) -> Draft:
    """By a method that learns from no data, at the strongest dose within the limit on KL."""
    method, name = str(recipe.method), recipe.data[0]
    own = {PATHS["generate"]: [shipped_file(method, "generate")], "save_vectors": False}
    given = {**recipes.of_every_run(), **own, **recipe.hparams, "steer_train_dataset": [name]}
    generator = BaseVectorGenerator(given, model)
    (vectors,) = generator.generate_vectors()[name].values()
    for known in vectors.about.values():
        # Made without a model, and judged with this one.
        known.setdefault("model", model_facts(model))
    (half,) = generator.hparams_dict.values()
    most = recipes.search_settings(recipe).max_kl
    for multiplier in sorted(recipe.multipliers, reverse=True):
        values = _values(recipe, vectors, multiplier)
        steps = applied(model, method, values, vectors)
        if kl(model, steps, CHOOSING) <= most:
            break
    draft = Draft(method, half.folder, vectors, values)
    return _judged(draft, recipes, recipe, model)


def _judged(draft: Draft, recipes: Recipes, recipe: Recipe, model: SteeredModel) -> Draft:
    """The same with its verdict."""
    steps = applied(model, draft.method, draft.values, draft.vectors)
    verdict, examples = verdict_on(recipes, recipe, model, steps)
    return replace(draft, verdict=verdict, examples=examples)


def _values(recipe: Recipe, vectors: Vectors, multiplier: float) -> dict[str, Any]:
    layers = [about["layer"] for about in vectors.about.values()]
    dose = {"multipliers": [multiplier], "strength": recipe.strength}
    return {"positions": "all", "layers": layers, **dose}
