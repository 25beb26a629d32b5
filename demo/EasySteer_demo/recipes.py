"""Recipes: how a visitor steers, as the config that the scripts run.

What the page does is what the recipe says: both go through `BaseVectorGenerator` and
`BaseVectorApplier`.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from answering import Wish
from options import DemoOptions

import steer
from steer.datasets import Row
from steer.files import writing
from steer.method_files import shipped_file
from steer.models import Intervention, SteeredModel
from steer.models.load import ModelAndChat
from steer.vectors import Vectors, save_vectors

# The folder in the archive, and the names in it.
FOLDER, PAIR, QUESTIONS = "steering", "pair", "questions"
# Of the model's settings; a device is this machine's own.
ALWAYS = ("model_name_or_path", "dtype", "use_chat_template")
HEAD = """\
# {note}
# Unpack steering.zip in the folder of the project; then, there:
#     python vectors_apply.py --config steering/recipe.yaml
"""


@dataclass(frozen=True)
class Recipe:
    """How a visitor steers.

    Attributes:
        config: Keys of the scripts' config, without model, question and generation settings.
        note: What it does, in a line.
        rows: What its vector is learnt from.
        source: Folder of a ready vector.
    """

    config: Mapping[str, Any]
    note: str
    rows: Sequence[Row] = ()
    source: str | None = None

    def __post_init__(self) -> None:
        # OmegaConf would put a variable of the environment in its place.
        if "${" in json.dumps(dict(self.config), ensure_ascii=False):
            raise ValueError("'${' has a meaning in recipes: leave it out of the text")


@dataclass(frozen=True)
class Made:
    """What a recipe gives.

    Attributes:
        interventions: How the model is steered.
        vectors: By method key; none where a prompt steers.
    """

    interventions: Sequence[Intervention]
    vectors: Mapping[str, Vectors]


@dataclass(frozen=True)
class Done:
    """What a visitor has seen, and may take along.

    Attributes:
        recipe: How it was steered.
        wish: What was asked.
        made: The vectors.
    """

    recipe: Recipe
    wish: Wish
    made: Made = field(repr=False)


def of_one_example(
    question: str, matching: str, not_matching: str, layer: int, strength: float
) -> Recipe:
    """A caa vector of one pair: towards `matching`, away from `not_matching`."""
    row = {"question": question, "matching": matching, "not_matching": not_matching}
    folder = f"{FOLDER}/vectors"
    config = {
        "steer_train_hparam_paths": [shipped_file("caa", "generate")],
        "steer_train_dataset": [f"{FOLDER}/{PAIR}.jsonl"],
        "steer_vector_output_dirs": [folder],
        **_applied("caa", f"{folder}/{PAIR}/caa_vector", layer, strength),
    }
    return Recipe(config, f"One example: caa, layer {layer}, strength {strength:g}", rows=[row])


def of_ready_vector(method: str, name: str, source: str, layer: int, strength: float) -> Recipe:
    """A vector that is there, in the folder `source`."""
    place = f"{FOLDER}/vectors/{Path(source).parent.name}/{Path(source).name}"
    config = _applied(method, place, layer, strength)
    note = f"Ready vector: {name}, layer {layer}, strength {strength:g}"
    return Recipe(config, note, source=source)


def of_prompt(prompt: str, concept: str | None = None) -> Recipe:
    """A text before every input."""
    config = {"apply_steer_hparam_paths": [shipped_file("prompt", "apply")], "prompt": prompt}
    written = "" if concept is None else f" that was written for {' '.join(concept.split())!r}"
    return Recipe(config, f"A steering prompt{written}")


def of_features(
    ids: Sequence[int], strengths: Sequence[float], layer: int, sae_path: str | None
) -> Recipe:
    """Features of a sparse autoencoder, each added with a strength of its own."""
    folder = f"{FOLDER}/vectors"
    place = f"{folder}/no_data/sae_feature_vector"
    config = {
        "steer_train_hparam_paths": [shipped_file("sae_feature", "generate")],
        "steer_vector_output_dirs": [folder],
        "layer": layer,
        "search": None,
        "position_ids": list(ids),
        "strengths": list(strengths),
        **({"sae_path": sae_path} if sae_path else {}),
        **_applied("sae_feature", place, layer, 1.0),
    }
    return Recipe(config, f"SAE features {', '.join(map(str, ids))} of layer {layer}")


def _applied(method: str, place: str, layer: int, strength: float) -> dict[str, Any]:
    return {
        "apply_steer_hparam_paths": [shipped_file(method, "apply")],
        "steer_vector_load_dir": [place],
        "layers": [layer],
        "multipliers": [strength],
    }


def make(recipe: Recipe, options: DemoOptions, model: SteeredModel) -> Made:
    """Do what a recipe says, up to the answers; nothing is left in force on `model`.

    Raises:
        ValueError: Something in it does not fit the model.
        OSError: A vector cannot be read.
    """
    config = {**_model_keys(options), **recipe.config, "save_vectors": False}
    if recipe.source is not None:
        config["steer_vector_load_dir"] = [recipe.source]
    made: Mapping[str, Vectors] = {}
    if "steer_train_hparam_paths" in config:
        generator = steer.BaseVectorGenerator(config, model)
        (made,) = generator.generate_vectors({PAIR: recipe.rows}).values()
    applier = steer.BaseVectorApplier(config, model)
    loaded = {key: made.get(key) or half.load(model) for key, half in applier.hparams_dict.items()}
    applier.apply_vectors(loaded)
    vectors = {key: one for key, one in loaded.items() if isinstance(one, Vectors)}
    return Made(applier.model.interventions(), vectors)


def text_of(done: Done, options: DemoOptions) -> str:
    """A recipe as a file for the scripts."""
    config = {
        **_model_keys(options),
        "device": "auto",
        **done.recipe.config,
        "seed": done.wish.seed,
        "generation_data": [f"{FOLDER}/{QUESTIONS}.jsonl"],
        "generation_output_dir": f"{FOLDER}/answers",
        "generation_params": done.wish.generation_params,
        "generate_orig_output": True,
    }
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
    return HEAD.format(note=done.recipe.note) + body


def export(done: Done, options: DemoOptions, folder: Path) -> list[Path]:
    """Write a recipe, and an archive with all that it needs, into `folder`; their paths."""
    root = folder / FOLDER
    _write(root / "recipe.yaml", text_of(done, options))
    _write(root / f"{QUESTIONS}.jsonl", _line({"input": done.wish.question}))
    if done.recipe.rows:
        _write(root / f"{PAIR}.jsonl", "".join(map(_line, done.recipe.rows)))
    for vectors in done.made.vectors.values():
        (place,) = done.recipe.config["steer_vector_load_dir"]
        save_vectors(folder / place, vectors, vectors.about)
    archive = folder / f"{FOLDER}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                packed.write(path, path.relative_to(folder))
    return [root / "recipe.yaml", archive]


def _model_keys(options: DemoOptions) -> dict[str, Any]:
    """The model and how text is put before it: what every recipe names, and what was changed."""
    usual, given = asdict(ModelAndChat()), asdict(options)
    return {
        key: given[key]
        for key in usual
        if key in ALWAYS or (key != "device" and given[key] != usual[key])
    }


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text)
