"""Vectors of any tool as a run: every vector of a folder, or of one file, is applied."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steer.files import find
from steer.methods.activation_addition import AddVectors
from steer.settings import MethodSettings, Run
from steer.vectors import import_vectors, vector_names


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
            1 where there are none. `operation`, `strength` and `positions` count too.
        paths: Folders, or files of other tools.
        scratch: A folder to unpack those into.

    Raises:
        ValueError: A folder without vectors, a file that cannot be read, or too few multipliers.
        FileNotFoundError: Nothing is there.
    """
    ours = ("operation", "strength", "positions", "allow_mismatch")
    shared = {key: cfg[key] for key in ours if key in cfg}
    given = cfg.get("multipliers") or [1.0]
    multipliers = list(given) * len(paths) if len(given) == 1 else list(given)
    if len(multipliers) != len(paths):
        raise ValueError(f"multipliers: one for each of {len(paths)} paths, or one: got {given}")
    dropped = (*ours, "multipliers", "layers", "apply_steer_hparam_paths", "steer_vector_load_dir")
    run = Run.of({k: v for k, v in cfg.items() if k not in (*dropped, "methods")}, "apply")
    for number, path in enumerate(paths):
        folder = _folder(path, Path(scratch, str(number)))
        layers = layers_in(folder)
        half = AddFolder(
            layers=list(layers),
            files=list(layers.values()),
            multipliers=[float(multipliers[number])] * len(layers),
            steer_vector_load_dir=str(folder),
            **shared,
        )
        short = "/".join(Path(path).parts[-2:])
        key = short if short not in run.methods else f"{short} ({number + 1})"
        run.methods[key] = MethodSettings("caa", half)
    return run


def _folder(path: str, scratch: Path) -> Path:
    place = find(path, "vectors")
    if place.is_dir():
        return place
    if place.suffix == ".pt":
        return place.parent
    import_vectors(place, scratch)
    return scratch


def layers_in(folder: Path) -> dict[int, str]:
    """Layer -> the name of its vector; the first of a layer's in order.

    Raises:
        ValueError: There is none.
    """
    found: dict[int, str] = {}
    for name in vector_names(folder):
        match = re.search(r"layer_?(\d+)", name)
        if match:
            found.setdefault(int(match[1]), name)
    if not found:
        raise ValueError(
            f"{folder} has no vectors: files are called layer_<n>.pt; a .gguf or .safetensors file "
            "is given by its own path"
        )
    return found
