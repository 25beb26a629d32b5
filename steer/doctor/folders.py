"""Vectors of any tool as a run: every vector of a folder, or of one file, is applied."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer.build import build
from steer.files import find
from steer.method_files import field_names
from steer.methods.activation_addition import AddVectors
from steer.settings import MethodSettings, Run
from steer.vectors import import_vectors, vector_names

# What the vectors themselves say, or one number says for all of their layers.
OWN = {"layers", "multipliers", "steer_vector_load_dir"}


@dataclass(kw_only=True)
class AddFolder(AddVectors):
    """`AddVectors` for files of any name that says a layer.

    Attributes:
        files: The name of each layer's vector.
    """

    files: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """The name of each layer's vector."""
        return self.files


def run_of(cfg: Mapping[str, Any], paths: Sequence[str], scratch: str) -> Run:
    """The run of a config, with the vectors at `paths` instead of its methods.

    Args:
        cfg: Its `multipliers`, one for each path or one for all, are the strength of every layer;
            1 where there are none. What else `AddVectors` can be told counts too, but for layers.
        paths: Folders, their single files, or files of other tools.
        scratch: A folder to unpack those into.

    Raises:
        ValueError: A folder without vectors, a file that cannot be read, or too few multipliers.
        FileNotFoundError: Nothing is there.
    """
    ours = field_names(AddVectors)
    shared = {key: cfg[key] for key in ours - OWN if key in cfg}
    multipliers = _multipliers(cfg.get("multipliers"), len(paths))
    dropped = {*ours, "apply_steer_hparam_paths", "methods"}
    run = Run.of({k: v for k, v in cfg.items() if k not in dropped}, "apply")
    for number, path in enumerate(paths):
        folder, name = _place(path, Path(scratch, str(number)))
        layers = layers_in(folder, name)
        own = {
            "layers": list(layers),
            "files": list(layers.values()),
            "multipliers": [multipliers[number]] * len(layers),
            "steer_vector_load_dir": str(folder),
        }
        half = build(AddFolder, shared | own)
        short = "/".join(Path(path).parts[-2:])
        key = short if short not in run.methods else f"{short} ({number + 1})"
        run.methods[key] = MethodSettings("caa", half)
    return run


def _multipliers(given: Any, paths: int) -> list[Any]:
    every = [1.0] if given is None else given if isinstance(given, list) else [given]
    found = every * paths if len(every) == 1 else every
    if len(found) != paths:
        raise ValueError(f"multipliers: one for each of {paths} paths, or one: got {given}")
    return found


def _place(path: str, scratch: Path) -> tuple[Path, str | None]:
    """A folder, and the name of the vector in it that is meant; None for all."""
    place = find(path, "vectors")
    if place.is_dir():
        return place, None
    if place.suffix == ".pt":
        return place.parent, place.stem
    import_vectors(place, scratch)
    return scratch, None


def layers_in(folder: Path, only: str | None = None) -> dict[int, str]:
    """Layer -> the name of its vector; the first of a layer's in order, or of that name.

    Raises:
        ValueError: There is none.
    """
    found: dict[int, str] = {}
    for name in vector_names(folder) if only is None else [only]:
        match = re.search(r"layer_?(\d+)", name)
        if match:
            found.setdefault(int(match[1]), name)
    if not found:
        raise ValueError(
            f"{folder} has no vectors: files are called layer_<n>.pt; a .gguf or .safetensors file "
            "is given by its own path"
        )
    return found
