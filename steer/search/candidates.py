"""Settings to try: method, layer, dose and positions; and what each does to a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import set_seed

from steer.datasets import Row
from steer.generator import BaseVectorGenerator
from steer.method_files import PATHS, field_names, shipped_file
from steer.methods import METHODS_CLASS_DICT, Applier, Context
from steer.models import Intervention, SteeredModel
from steer.search.settings import SearchSettings
from steer.settings import Run
from steer.vectors import Vectors

# Fields of an applying half that say how strongly it acts. A relative dose is in the first; what
# cannot be relative is scaled, by these factors, from what the method's file says.
RELATIVE, SCALED = "multipliers", ("steer_values", "amount")
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)


@dataclass(frozen=True)
class Candidate:
    """A setting.

    Attributes:
        method: Its name.
        layer: Decoder block; None for a method without a choice of blocks.
        dose: Share of the layer's residual norm, or a multiple of what the method's file says.
        positions: Name of the tokens steered.
    """

    method: str
    layer: int | None
    dose: float
    positions: str = "all"

    def __str__(self) -> str:
        layer = "" if self.layer is None else f", layer {self.layer}"
        where = "" if self.positions == "all" else f", {self.positions}"
        return f"{self.method}{layer}, dose {self.dose:g}{where}"


def coarse_to_fine(count: int) -> list[int]:
    """0 to `count` - 1, so that each beginning of the list is spread out."""
    order: list[int] = []
    parts = 1
    while len(order) < count:
        places = [round((2 * n + 1) * count / (2 * parts) - 0.5) for n in range(parts)]
        order += [place for place in dict.fromkeys(places) if place not in order]
        parts *= 2
    return order


def evenly_spaced(depth: int, count: int) -> list[int]:
    """So many blocks, from the first quarter of a model to its last tenth."""
    first, last = depth // 4, max((9 * depth) // 10 - 1, 0)
    count = max(min(count, last - first + 1), 1)
    return sorted({round(first + n * (last - first) / max(count - 1, 1)) for n in range(count)})


class Workshop:
    """Makes vectors of rows, and interventions of vectors, for the methods of a search.

    Args:
        settings: The search's.
        dataset: Name of the data.
        model: Unsteered.
        layers: Decoder blocks to choose from.
    """

    def __init__(
        self, settings: SearchSettings, dataset: str, model: SteeredModel, layers: Sequence[int]
    ) -> None:
        self.settings, self.dataset = settings, dataset
        self.model, self.layers = model, list(layers)
        model.check_layers(layers)
        self.appliers: dict[str, Applier] = {}
        for method in settings.chosen:
            run = Run.of(self._config(method, "apply"), "apply")
            (entry,) = run.methods.values()
            self.appliers[method] = entry.half

    def _config(self, method: str, phase: str, **more: Any) -> dict[str, Any]:
        known = set().union(*map(field_names, METHODS_CLASS_DICT[method].values()))  # type: ignore[arg-type]
        given = {k: v for k, v in self.settings.more.items() if k in known}
        paths = {PATHS[phase]: [shipped_file(method, phase)]}
        return {**self.settings.of_every_run(), **given, **paths, **more}

    def layers_of(self, method: str) -> list[int | None]:
        """Blocks to choose from: those of the search, or of the method's file.

        The file's hold where it names other files line by line with them, as sparse autoencoders.
        """
        config = self._config(method, "generate", save_vectors=False)
        (entry,) = Run.of(config, "generate").methods.values()
        names = field_names(type(entry.half))
        if "layers" not in names:
            return [None]
        bound = any(name.endswith("_paths") and getattr(entry.half, name) for name in names)
        return list(entry.half.layers) if bound else list(self.layers)

    def train(
        self, method: str, rows: Sequence[Row], layers: Sequence[int | None]
    ) -> Mapping[str, Any]:
        """The vectors of `rows` at `layers`; nothing is written."""
        config = self._config(method, "generate", save_vectors=False, **_named(layers))
        (entry,) = Run.of(config, "generate").methods.values()
        set_seed(self.settings.seed)
        context = Context(dataset=self.dataset, about={"seed": self.settings.seed})
        return entry.half.train(self.model, rows, context).vectors

    def write(
        self, candidate: Candidate, rows: Sequence[Row], folder: Path
    ) -> tuple[Path, Vectors]:
        """Make the candidate's vectors of `rows`, with their metadata, below `folder`."""
        more = _named([candidate.layer]) | {"steer_vector_output_dirs": [str(folder)]}
        config = self._config(candidate.method, "generate", **more)
        generator = BaseVectorGenerator(config, self.model)
        generator.generate_vectors({self.dataset: list(rows)})
        ((_, vectors),) = generator.vectors(self.dataset).items()
        return generator.folders(self.dataset)[0], vectors

    def values(self, candidate: Candidate) -> dict[str, Any]:
        """What the candidate's method file for applying says, where it differs from the shipped."""
        half = self.appliers[candidate.method]
        names = {f.name for f in fields(half)}  # type: ignore[arg-type]
        found: dict[str, Any] = {n: getattr(half, n) for n in self.settings.more if n in names}
        if "positions" in names:
            found["positions"] = candidate.positions
        if candidate.layer is not None:
            found |= {"layers": [candidate.layer]} if "layers" in names else {}
            found |= {"direction_layer": candidate.layer} if "direction_layer" in names else {}
        if RELATIVE in names:
            return found | {RELATIVE: [candidate.dose], "strength": "relative"}
        for name in SCALED:
            if name in names:
                found[name] = _scaled(getattr(half, name), candidate.dose)
        return found

    def interventions(self, candidate: Candidate, vectors: Mapping[str, Any]) -> list[Intervention]:
        """What the candidate does, given its method's vectors."""
        half: Any = replace(self.appliers[candidate.method], **self.values(candidate))  # type: ignore[type-var]
        return half.interventions(self.model, vectors)

    def grid(self) -> list[Candidate]:
        """Every setting, coarse ones first: each beginning of the list is spread over all."""
        settings, found = self.settings, []
        for m, method in enumerate(settings.chosen):
            layers = self.layers_of(method)
            doses = settings.doses if self._is_relative(method) else FACTORS
            for i, layer in enumerate(coarse_to_fine(len(layers))):
                for j, dose in enumerate(coarse_to_fine(len(doses))):
                    for k, where in enumerate(settings.positions):
                        one = Candidate(method, layers[layer], doses[dose], where)
                        found.append(((i + 1) * (j + 1) * (m + 1) * (k + 1), len(found), one))
        return [one for *_, one in sorted(found, key=lambda entry: entry[:2])]

    def _is_relative(self, method: str) -> bool:
        return RELATIVE in field_names(type(self.appliers[method]))


def _named(layers: Sequence[int | None]) -> dict[str, list[int]]:
    chosen = [layer for layer in layers if layer is not None]
    return {"layers": chosen} if chosen else {}


def _scaled(value: Any, factor: float) -> Any:
    return [factor * one for one in value] if isinstance(value, list) else factor * value
