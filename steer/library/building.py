"""Makes the library: each vector by its recipe, judged, and kept only where it works."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from steer.datasets import DatasetLoader
from steer.files import find
from steer.generator import BaseVectorGenerator
from steer.library.applying import applied
from steer.library.judging import CHOOSING, kl, verdict_on
from steer.library.keeping import Draft, keep, note_left_out, said, write_page
from steer.library.recipes import Recipe, Recipes
from steer.method_files import PATHS, shipped_file
from steer.models import SteeredModel
from steer.search.searching import Data, search
from steer.vectors import Vectors, load_vectors, vector_names
from steer.vectors.catalogue import LIBRARY


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
        draft = (_searched if recipe.method is None else _made)(recipes, recipe, model)
        place = folder / Path(recipes.model_name_or_path).name / name
        if draft.works:
            keep(draft, place, said(recipes, recipe))
        else:
            shutil.rmtree(place, ignore_errors=True)
        note_left_out(folder, name, recipe, draft)
        write_page(folder)
        yield f"{name}: {draft}"


def _searched(recipes: Recipes, recipe: Recipe, model: SteeredModel) -> Draft:
    """By a search over layers and doses on the recipe's first data set."""
    (source,) = recipe.data
    with tempfile.TemporaryDirectory() as scratch:
        settings = recipes.search_settings(source, scratch)
        rows = DatasetLoader().load_file(source, "train")
        found = search(settings, Data.of(settings, source, source, rows), model)
        pick = found["pick"]
        if pick is None:
            return Draft("caa", verdict=found["verdict"])
        place = Path(found["folder"])
        vectors = load_vectors(place, vector_names(place))
    sides = ("input", "unsteered", "steered")
    examples = [{side: one[side] for side in sides} for one in found["examples"]]
    return Draft(pick["method"], place.name, vectors, pick["values"], found["verdict"], examples)


def _made(recipes: Recipes, recipe: Recipe, model: SteeredModel) -> Draft:
    """By a method that learns from no data, at the strongest dose within the limit on KL."""
    method, name = str(recipe.method), recipe.data[0]
    own = {PATHS["generate"]: [shipped_file(method, "generate")], "save_vectors": False}
    given = {**recipes.of_every_run(), **own, **recipe.hparams, "steer_train_dataset": [name]}
    generator = BaseVectorGenerator(given, model)
    (vectors,) = generator.generate_vectors()[name].values()
    (half,) = generator.hparams_dict.values()
    most = recipes.search_settings(name).max_kl
    for multiplier in sorted(recipe.multipliers, reverse=True):
        values = _values(recipe, vectors, multiplier)
        steps = applied(model, method, values, vectors)
        if kl(model, steps, CHOOSING) <= most:
            break
    verdict, examples = verdict_on(recipes, model, steps, recipe.data)
    return Draft(method, half.folder, vectors, values, verdict, examples)


def _values(recipe: Recipe, vectors: Vectors, multiplier: float) -> dict[str, Any]:
    layers = [about["layer"] for about in vectors.about.values()]
    dose = {"multipliers": [multiplier], "strength": recipe.strength}
    return {"positions": "all", "layers": layers, **dose}
