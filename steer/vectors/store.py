"""One folder a method: `<name>.pt`, a bare tensor each, and `metadata.json`, which says what it is.

A folder without `metadata.json` is EasyEdit2's own form and loads with a note.
"""

import io
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from steer.files import file_sha256, find, read_json, write_json, writing

log = logging.getLogger(__name__)

Vectors = dict[str, Tensor]

FORMAT_VERSION = 1
METADATA = "metadata.json"
HOOK_POINT = "output of decoder block n (residual stream behind it), n counted from 0"


def save_vectors(
    folder: str | Path, vectors: Mapping[str, Tensor], about: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write each vector to `<folder>/<name>.pt` and what is known of it to `metadata.json`.

    Other vectors of the folder, and their entries, stay. Each file is written whole or not at all.

    Args:
        folder: Made where it is not there.
        vectors: Name (`layer_15`) -> tensor.
        about: Name -> entry; `layer`, `model` and the rest of `metadata.json`.

    Raises:
        ValueError: A name that is no file name, or a vector with NaN; nothing is written.
        OSError: The folder cannot be written, or the disk is full.
    """
    folder = Path(folder)
    for name, vector in vectors.items():
        _check_vector(name, vector)
    entries: dict[str, Any] = {}
    for name, vector in vectors.items():
        tensor = vector.detach().cpu().contiguous().clone()
        buffer = io.BytesIO()
        torch.save(tensor, buffer)
        with writing(folder / f"{name}.pt", "wb") as file:
            file.write(buffer.getvalue())
        entries[name] = {
            **about.get(name, {}),
            "file": f"{name}.pt",
            "sha256": file_sha256(folder / f"{name}.pt"),
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "norm": float(tensor.float().norm()),
        }
    with FileLock(folder / f".{METADATA}.lock"):
        kept = read_metadata(folder) or {}
        write_json(
            folder / METADATA,
            {
                "format_version": FORMAT_VERSION,
                "operation": "add",
                "hook_point": HOOK_POINT,
                "vectors": kept.get("vectors", {}) | entries,
            },
            indent=2,
        )


def _check_vector(name: str, vector: Tensor) -> None:
    # A name may come from a foreign file, and must not lead out of the folder.
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ValueError(f"{name!r} is no name for a vector: use letters, digits and . _ + -")
    if not vector.isfinite().all():
        raise ValueError(f"vector {name} holds NaN or infinity, and is not saved")


def read_metadata(folder: str | Path) -> dict[str, Any] | None:
    """The folder's `metadata.json`; None where it has none.

    Raises:
        ValueError: The file is broken, or of a version that this library does not know.
    """
    path = Path(folder) / METADATA
    if not path.is_file():
        return None
    metadata = read_json(path)
    vectors = metadata.get("vectors") if isinstance(metadata, dict) else None
    if not isinstance(vectors, dict) or not all(isinstance(e, dict) for e in vectors.values()):
        raise ValueError(
            f"{path} is not a steering vector's metadata: it has no entries under 'vectors'; make "
            "the vectors anew, or remove the file"
        )
    version = metadata.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}; this version of steer reads 1 to "
            f"{FORMAT_VERSION}: update steer"
        )
    return metadata


def load_vectors(
    folder: str | Path,
    names: Sequence[str],
    *,
    model: Mapping[str, Any] | None = None,
    allow_mismatch: bool = False,
) -> Vectors:
    """Read the vectors `names` of `folder`, on the CPU.

    Args:
        folder: A folder that `save_vectors` or EasyEdit2 wrote.
        names: Without extension.
        model: Facts of the model to steer; a vector made with another is refused.
        allow_mismatch: Load a vector of another model all the same, for transfer experiments.

    Raises:
        FileNotFoundError: No folder, or no vector of a name; the message lists those there.
        ValueError: A broken file, one that holds more than a tensor, or one of another model.
    """
    folder = find(folder, "vector folder")
    metadata = read_metadata(folder)
    if metadata is None:
        log.warning(
            "%s has no %s: which model and layer it is for is not checked", folder, METADATA
        )
    vectors: Vectors = {}
    for name in names:
        vectors[name] = read_tensor(_vector_file(folder, name))
        entry = (metadata or {}).get("vectors", {}).get(name)
        if entry is not None:
            _check_bytes(folder, name, entry)
        if model is not None:
            _check_fit(folder / f"{name}.pt", vectors[name], entry or {}, model, allow_mismatch)
    return vectors


def _vector_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pt"
    if not path.is_file():
        there = sorted(p.stem for p in folder.glob("*.pt"))
        raise FileNotFoundError(
            f"no {name}.pt in {folder}; there are: {', '.join(there) or 'no vectors'}: "
            "run vectors_generate.py for that layer first"
        )
    return path


def read_tensor(path: Path) -> Tensor:
    """The one tensor in a .pt file; nothing in it is run.

    Raises:
        ValueError: A broken file, one that would run code, or not one tensor of finite numbers.
    """
    broken = (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError)
    # What a broken pickle makes of the unpickler's own state.
    broken = (*broken, KeyError, IndexError, AttributeError, TypeError, AssertionError)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except broken as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "empty file"
        raise ValueError(
            f"{path} is broken, or holds more than tensors, and is not opened ({reason})"
        ) from error
    if not isinstance(value, Tensor):
        raise ValueError(f"{path} must hold one tensor: got {type(value).__name__}")
    if not value.isfinite().all():
        raise ValueError(f"{path} holds NaN or infinity: make the vector anew")
    return value


def _check_bytes(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if file_sha256(folder / f"{name}.pt") != entry.get("sha256"):
        raise ValueError(
            f"{folder / name}.pt is not the file that {METADATA} describes (its SHA-256 differs): "
            "make the vector anew, or remove the entry"
        )


def _check_fit(
    path: Path,
    vector: Tensor,
    entry: Mapping[str, Any],
    model: Mapping[str, Any],
    allow_mismatch: bool,
) -> None:
    width = model["hidden_size"]
    if list(vector.shape) != [width]:
        raise ValueError(
            f"{path} does not fit: its shape is {list(vector.shape)}, the model {model['id']} is "
            f"{width} wide; make the vector with this model"
        )
    problem = _disagreement(entry, model)
    if problem and not allow_mismatch:
        raise ValueError(
            f"{path} does not fit: {problem}; set allow_mismatch: true for a transfer experiment"
        )


def _disagreement(entry: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    layer, depth = entry.get("layer"), model["num_layers"]
    if isinstance(layer, int) and layer >= depth:
        return f"it is for layer {layer}, the model {model['id']} has layers 0 to {depth - 1}"
    made_with = entry.get("model") or {}
    if not made_with or made_with.get("fingerprint") == model["fingerprint"]:
        return None
    if made_with.get("id") != model["id"]:
        return f"it was made with {made_with.get('id')}, the model is {model['id']}"
    log.warning("a vector was made with other weights of the name %s", model["id"])
    return None
