"""One folder a method: `<name>.pt`, a bare tensor each, and `metadata.json`, which says what it is.

A folder without `metadata.json` is EasyEdit2's own form and loads with a note.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from steer.files import file_sha256, find, locked, sha256, write_together
from steer.vectors.metadata import (
    FORMAT_VERSION,
    METADATA,
    check_metadata,
    disagreement,
    read_metadata,
    vector_names,
)
from steer.vectors.tensors import checked, pt_bytes, read_tensor, read_tensors

log = logging.getLogger(__name__)

HOOK_POINT = "output of decoder block n (residual stream behind it), n counted from 0"


class Vectors(dict[str, Tensor]):
    """Vectors by name.

    Attributes:
        about: Name -> what is known of it, as in `metadata.json`: layer, residual norm and so on.
    """

    def __init__(
        self,
        vectors: Mapping[str, Tensor] | None = None,
        about: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(vectors or {})
        self.about: dict[str, dict[str, Any]] = {n: dict(a) for n, a in (about or {}).items()}


def save_vectors(
    folder: str | Path,
    vectors: Mapping[str, Tensor],
    about: Mapping[str, Mapping[str, Any]],
    *,
    bundle: str | None = None,
    files: Mapping[str, Any] | None = None,
    borrowed: bool = False,
) -> None:
    """Write each vector to `<folder>/<name>.pt` and what is known of it to `metadata.json`.

    Other vectors of the folder, and their entries, stay. No file is replaced before all new ones
    are on disk whole, and runs that write to one folder at once wait for each other.

    Args:
        folder: Made where it is not there.
        vectors: Name (`layer_15`) -> tensor.
        about: Name -> entry; `layer`, `model` and the rest of `metadata.json`.
        bundle: All go into the one file `<bundle>.pt`, a dict; `about` is then of that name.
        files: Name of a further file beside the vectors -> its JSON.
        borrowed: The folder is another method's: the entry of a vector that this method has put
            there already stays as it is, and where another vector is replaced, the log says so.

    Raises:
        ValueError: A name that is not a file's, or a vector with NaN or infinity.
    """
    folder = Path(folder)
    tensors = {name: checked(name, vector) for name, vector in vectors.items()}
    contents: dict[str, Any] = tensors if bundle is None else {bundle: tensors}
    written = {folder / name: _json_bytes(value) for name, value in (files or {}).items()}
    entries: dict[str, Any] = {}
    for name, value in contents.items():
        data = pt_bytes(value)
        written[folder / f"{name}.pt"] = data
        file = {"file": f"{name}.pt", "sha256": sha256(data)}
        entries[name] = {**about.get(name, {}), **file, **_measures(value)}
    with locked(folder / METADATA):
        kept = read_metadata(folder) or {}
        there = kept.get("vectors", {})
        if borrowed:
            entries = _not_there(folder, there, entries)
        # What belongs together is not added to a block's output: its entry says what it is for.
        added = {"operation": "add", "hook_point": HOOK_POINT} if bundle is None else {}
        metadata = {"format_version": FORMAT_VERSION, **added, "vectors": there | entries}
        write_together({**written, folder / METADATA: _json_bytes(metadata)})


def _not_there(
    folder: Path, there: Mapping[str, Any], entries: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of `entries` that are not `there`, and their vectors; warns of replaced files."""
    for name, entry in entries.items():
        path = folder / entry["file"]
        if path.is_file() and file_sha256(path) != entry["sha256"]:
            method = there.get(name, {}).get("method", "unknown")
            log.warning(
                "%s is replaced: the vector that was there (method: %s) was made in another way, "
                "with other settings or data",
                *(path, method),
            )
    same = ("sha256", "method")
    return {
        name: entry
        for name, entry in entries.items()
        if any(there.get(name, {}).get(key) != entry.get(key) for key in same)
    }


def _measures(value: Tensor | Mapping[str, Tensor]) -> dict[str, Any]:
    if not isinstance(value, Tensor):
        return {"tensors": {name: _measures(tensor) for name, tensor in value.items()}}
    return {
        "shape": list(value.shape),
        "dtype": str(value.dtype).removeprefix("torch."),
        "norm": float(value.double().norm()),
    }


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


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
        allow_mismatch: Load a vector of another model of the same width all the same, for
            transfer experiments.

    Raises:
        FileNotFoundError: No folder, or no vector of a name; the message lists those there.
        ValueError: A broken file, one that holds more than a tensor, or one of another model.
    """
    folder = find(folder, "vector folder")
    entries = _entries(folder, names)
    vectors = Vectors(about={name: entries[name] for name in names if name in entries})
    for name in names:
        path = _vector_file(folder, name)
        vectors[name] = read_tensor(path)
        _check_bytes(path, entries.get(name))
        if model is not None:
            _check_width(path, vectors[name], model)
            _check_model(path, entries.get(name), model, allow_mismatch)
    return vectors


def load_bundle(
    folder: str | Path,
    name: str,
    *,
    model: Mapping[str, Any] | None = None,
    allow_mismatch: bool = False,
) -> Vectors:
    """Read the tensors of `<name>.pt`, a bundle of `save_vectors` or EasyEdit2's, on the CPU.

    Args:
        folder: As for `load_vectors`, and so are the other two.
        name: Without extension; the entry of `about` has it too.
        model: As there.
        allow_mismatch: As there.

    Raises:
        FileNotFoundError: As there.
        ValueError: As there.
    """
    folder = find(folder, "vector folder")
    entries = _entries(folder, [name])
    path = _vector_file(folder, name)
    tensors, settings = read_tensors(path)
    _check_bytes(path, entries.get(name))
    if model is not None:
        _check_model(path, entries.get(name), model, allow_mismatch)
    return Vectors(tensors, {name: settings | entries.get(name, {})})


def _entries(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    entries = (read_metadata(folder) or {}).get("vectors", {})
    if unknown := [name for name in names if name not in entries]:
        log.warning(
            "%s: %s says nothing about %s: which model it is for is not checked",
            *(folder, METADATA, ", ".join(unknown)),
        )
    if imported := [n for n in names if n in entries and not entries[n].get("model")]:
        log.info(
            "%s: which model %s is for is not known, and not checked", folder, ", ".join(imported)
        )
    return entries


def _check_model(
    path: Path, entry: Mapping[str, Any] | None, model: Mapping[str, Any], allowed: bool
) -> None:
    problem = disagreement(entry or {}, model)
    if problem and not allowed:
        raise ValueError(
            f"{path} does not fit: {problem}; set allow_mismatch: true for a transfer experiment"
        )


def _vector_file(folder: Path, name: str) -> Path:
    path = folder / f"{name}.pt"
    if not path.is_file():
        there = ", ".join(vector_names(folder)) or "no vectors"
        raise FileNotFoundError(
            f"no {name}.pt in {folder}; there are: {there}: run vectors_generate.py for that "
            "layer first"
        )
    return path


def _check_bytes(path: Path, entry: Mapping[str, Any] | None) -> None:
    if entry is not None and file_sha256(path) != entry.get("sha256"):
        raise ValueError(
            f"{path} is not the file that {METADATA} describes (its SHA-256 differs): "
            "make the vector anew, or remove the entry"
        )


def _check_width(path: Path, vector: Tensor, model: Mapping[str, Any]) -> None:
    if list(vector.shape) != [model["hidden_size"]]:
        raise ValueError(
            f"{path} does not fit: its shape is {list(vector.shape)}, the model {model['id']} is "
            f"{model['hidden_size']} wide; make the vector with a model of that width"
        )


def annotate(
    folder: str | Path, more: Mapping[str, Any], names: Collection[str] | None = None
) -> None:
    """Add `more` to what `metadata.json` says of vectors of `folder`.

    Args:
        folder: As for `load_vectors`.
        more: JSON-like; takes the place of what was there under the same keys.
        names: Only entries with one of these names; all where None.

    Raises:
        ValueError: There is no metadata, or it is broken.
    """
    path = Path(folder) / METADATA
    with locked(path):
        kept = check_metadata(read_metadata(folder), path)
        entries = kept["vectors"]
        chosen = [name for name in entries if names is None or name in names]
        vectors = entries | {name: {**entries[name], **more} for name in chosen}
        write_together({path: _json_bytes({**kept, "vectors": vectors})})
