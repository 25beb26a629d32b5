"""vectors/library/library.yaml: what the library is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer.build import build, check_value, pick, read_yaml
from steer.files import find
from steer.method_files import field_names
from steer.methods import METHODS_CLASS_DICT
from steer.models.load import ModelAndChat
from steer.search.settings import SearchSettings

RECIPES = "library.yaml"


@dataclass(kw_only=True)
class Recipe:
    """How one vector of the library is made.

    Attributes:
        does: What it makes likelier, in a sentence.
        data: Names of data sets: the first is learnt from, and the held-out pairs of all judge.
        method: One that learns from no data, with the settings in `hparams`; null learns from
            the pairs of `data`, by the method, layers and doses of `search`.
        hparams: Of its method file for making.
        multipliers: Doses; the strongest within the limit on KL is taken, before any pair is seen.
        strength: `relative`, or `absolute` where no residual norm is known.
        search: Keys of search.yaml, such as limits, that stand over those of all recipes.
        note: What a user must be told.
    """

    does: str
    data: list[str]
    method: str | None = None
    hparams: dict[str, Any] = field(default_factory=dict)
    multipliers: list[float] = field(default_factory=list)
    strength: str = "relative"
    search: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        check_value("data", self.data, "one name or more", bool(self.data))
        if self.method is not None:
            pick("method", self.method, METHODS_CLASS_DICT)
            check_value("multipliers", self.multipliers, "one or more", bool(self.multipliers))


@dataclass(kw_only=True)
class Recipes(ModelAndChat):
    """All of them; see also `ModelSource` and `ChatFormat`.

    Attributes:
        seed: For everything random.
        licence: Of every vector.
        search: Keys of hparams/Steer/search.yaml: what is tried, and the limits on its price.
        vectors: Name -> its recipe.
    """

    seed: int = 42
    licence: str
    search: dict[str, Any]
    vectors: dict[str, Any]

    @classmethod
    def read(cls, library: str | Path) -> "Recipes":
        """Those of a library's folder.

        Raises:
            FileNotFoundError: There is no such folder, or no recipes in it.
            ValueError: An unknown key, or a wrong value.
        """
        path = find(Path(library, RECIPES), "list of recipes")
        values = read_yaml(path, "list of recipes")
        return build(cls, values, dict.fromkeys(values, str(path)), str(path))

    def chosen(self, names: Sequence[str] = ()) -> dict[str, Recipe]:
        """The recipes of these names; all where there is none.

        Raises:
            ValueError: No recipe of a name, or one with an unknown key or a wrong value.
        """
        for name in names:
            pick("vector", name, self.vectors)
        given = {name: self.vectors[name] for name in names or self.vectors}
        return {
            name: build(Recipe, values, dict.fromkeys(values, f"{RECIPES}: {name}"), name)
            for name, values in given.items()
        }

    def of_every_run(self) -> Mapping[str, Any]:
        """Keys of a run's config."""
        return {name: getattr(self, name) for name in (*field_names(ModelAndChat), "seed")}

    def search_settings(self, recipe: Recipe, folder: str | Path = "search") -> SearchSettings:
        """Those of a search for one of them; also its limits."""
        own = {"steer_train_dataset": recipe.data[:1], "output_dir": str(folder)}
        given = {**self.of_every_run(), **self.search, **recipe.search, **own}
        return SearchSettings.of(given)[0]
