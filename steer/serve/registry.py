"""The vectors of a server: found in one folder, loaded and unloaded while it runs.

No path is ever made of what a client says: a name is one of those found, or there is no such name.
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from steer.build import unknown
from steer.files import find
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.serve.errors import Refusal
from steer.serve.settings import ServeSettings
from steer.vectors import Vectors, load_vectors, read_metadata, vector_names

log = logging.getLogger(__name__)

MB = 1_000_000
TOLD = ("layer", "method", "residual_norm", "tokens_read", "norm", "sha256")


@dataclass(frozen=True, eq=False)
class Loaded:
    """A vector in memory; requests that use it keep it, whatever becomes of its name.

    Attributes:
        name: Its folder, within the server's.
        vectors: `layer_<n>` -> [d_model], on the model's device.
        layers: Those `n`.
    """

    name: str
    vectors: Vectors
    layers: list[int]

    def told(self) -> dict[str, Any]:
        """What clients may know of it."""
        layers = {
            str(layer): {k: v for k, v in self.vectors.about[f"layer_{layer}"].items() if k in TOLD}
            for layer in self.layers
        }
        return {"id": self.name, "object": "steering.vector", "layers": layers}


class Registry:
    """Vectors by name.

    Args:
        settings: The folder, and how much of it may be loaded at once.
        model: Vectors must fit it.
    """

    def __init__(self, settings: ServeSettings, model: SteeredModel) -> None:
        self.settings, self.model = settings, model
        self.folder = find(settings.vector_dir, "vector_dir").resolve()
        self.loaded: dict[str, Loaded] = {}
        self._facts = model_facts(model)
        self._one_at_a_time = threading.Lock()

    def available(self) -> dict[str, Path]:
        """Every folder that holds vectors, by name."""
        files = list(self.folder.rglob("*.pt"))
        # A link may lead anywhere.
        outside = {f.parent for f in files if not f.resolve().is_relative_to(self.folder)}
        folders = sorted({file.parent for file in files} - outside)
        return {folder.relative_to(self.folder).as_posix(): folder for folder in folders}

    def load_first(self) -> None:
        """Load what the settings name, or where they name nothing, all that fits.

        Raises:
            Refusal: One that they name cannot be loaded.
        """
        if self.settings.vectors is not None:
            for name in self.settings.vectors:
                self.load(name)
            return
        for name in self.available():
            try:
                self.load(name)
            except Refusal as refusal:
                log.info("%s is not loaded: %s", name, refusal)

    def load(self, name: str) -> Loaded:
        """Load a vector, or load it anew.

        Raises:
            Refusal: No vector of that name, no room for it, or it does not fit.
        """
        with self._one_at_a_time:
            folder = self.available().get(name)
            if folder is None:
                raise Refusal(404, f"no vector {name!r} in the server's folder", **_NAME)
            if name not in self.loaded and len(self.loaded) >= self.settings.max_loaded:
                message = (
                    f"{len(self.loaded)} vectors are loaded, the most there may be: unload one"
                )
                raise Refusal(409, message, code="too_many_vectors")
            try:
                loaded = self._read(name, folder)
            except (ValueError, OSError) as error:
                # Where the server keeps its files is not the client's to know.
                message = str(error).replace(str(self.folder), "").lstrip("/")
                raise Refusal(400, message, param="name", code="unusable_vector") from error
            self.loaded[name] = loaded
            return loaded

    def unload(self, name: str) -> None:
        """Forget a vector; requests under way end as they began.

        Raises:
            Refusal: It is not loaded.
        """
        if self.loaded.pop(name, None) is None:
            raise self._missing(name)

    def get(self, name: str) -> Loaded:
        """A loaded vector.

        Raises:
            Refusal: It is not loaded.
        """
        found = self.loaded.get(name)
        if found is None:
            raise self._missing(name)
        return found

    def _missing(self, name: str) -> Refusal:
        return Refusal(404, unknown("vector", name, list(self.loaded)), **_NAME)

    def _read(self, name: str, folder: Path) -> Loaded:
        size = sum(path.stat().st_size for path in folder.glob("*.pt"))
        if size > self.settings.max_vector_mb * MB:
            raise ValueError(f"{name} has {size / MB:.0f} MB, over {self.settings.max_vector_mb}")
        named = _by_layer(folder, vector_names(folder))
        allowed = self.settings.allow_mismatch
        files = list(named.values())
        found = load_vectors(folder, files, model=self._facts, allow_mismatch=allowed)
        tensors = {f"layer_{n}": self._placed(found[file]) for n, file in named.items()}
        about = {f"layer_{n}": found.about.get(file, {}) for n, file in named.items()}
        self.model.check_layers(named)
        return Loaded(name, Vectors(tensors, about), list(named))

    def _placed(self, vector: Tensor) -> Tensor:
        return vector if self.model.spread else vector.to(self.model.device)


_NAME: dict[str, Any] = {"param": "name", "code": "vector_not_found"}


def _by_layer(folder: Path, names: list[str]) -> dict[int, str]:
    """Layer -> the one file for it.

    Raises:
        ValueError: A file that is for no layer, or two for the same one.
    """
    entries = (read_metadata(folder) or {}).get("vectors", {})
    found: dict[int, str] = {}
    for name in names:
        layer = entries.get(name, {}).get("layer")
        if layer is None and name.removeprefix("layer_").isdecimal():
            layer = int(name.removeprefix("layer_"))
        if not isinstance(layer, int):
            raise ValueError(f"{name}.pt is not added at one layer: it cannot be served")
        if layer in found:
            raise ValueError(
                f"{found[layer]}.pt and {name}.pt are both for layer {layer}: keep one"
            )
        found[layer] = name
    return dict(sorted(found.items()))
