"""Vectors to and from other programs: one safetensors file, or llama.cpp's control vectors.

GGUF control vectors (llama.cpp `--control-vector`, repeng): architecture `controlvector`, and a
float32 tensor `direction.<n>` for each layer; n is the block whose output it is added to, counted
from 0. llama.cpp has no `direction.0`.
"""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from steer.files import find, writing
from steer.vectors.store import Vectors, load_vectors, read_metadata, save_vectors


def export_safetensors(folder: str | Path, path: str | Path) -> None:
    """Put all vectors of `folder`, and its metadata, into the one file `path`."""
    folder = find(folder, "vector folder")
    header = {"steer": json.dumps(read_metadata(folder) or {})}
    with writing(path, "wb") as file:
        file.write(save(load_vectors(folder, _names(folder)), metadata=header))


def import_safetensors(path: str | Path, folder: str | Path) -> list[str]:
    """Write the vectors of the safetensors file `path` into `folder`; their names.

    Raises:
        ValueError: Not a safetensors file.
    """
    path = find(path, "vector file")
    try:
        with safe_open(path, "pt") as file:
            vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get("steer", "{}")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    save_vectors(folder, vectors, _entries(path, header))
    return list(vectors)


def _entries(path: Path, header: str) -> dict[str, Any]:
    try:
        entries = json.loads(header).get("vectors", {})
        return {name: dict(entry) for name, entry in entries.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its metadata 'steer' is broken: {error}") from error


def export_gguf(folder: str | Path, path: str | Path) -> None:
    """Write the vectors `layer_<n>` of `folder` as a control vector of llama.cpp.

    Raises:
        ValueError: Layer 0 is among them, which llama.cpp does not have, or no `layer_<n>` is.
    """
    gguf: Any = _gguf()
    folder = find(folder, "vector folder")
    names = [name for name in _names(folder) if name.removeprefix("layer_").isdigit()]
    if not names:
        raise ValueError(f"{folder} has no vector layer_<n>: nothing to export")
    if "layer_0" in names:
        raise ValueError(
            f"{folder} has a vector for layer 0, which llama.cpp's control vectors do not have: "
            "use layer 1 or later, or export to safetensors"
        )
    vectors = load_vectors(folder, names)
    entries = (read_metadata(folder) or {}).get("vectors", {})
    hint = entries.get(names[0], {}).get("model", {}).get("model_type", "")
    # The writer opens files itself: what it writes is moved in one go.
    with tempfile.TemporaryDirectory() as scratch, writing(path, "wb") as file:
        part = Path(scratch, "vectors.gguf")
        writer = gguf.GGUFWriter(part, "controlvector")
        writer.add_string("controlvector.model_hint", hint or "unknown")
        writer.add_uint32("controlvector.layer_count", len(names))
        for name, vector in vectors.items():
            writer.add_tensor(f"direction.{name.removeprefix('layer_')}", vector.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        file.write(part.read_bytes())


def import_gguf(path: str | Path, folder: str | Path) -> list[str]:
    """Write the directions of a control vector of llama.cpp or repeng into `folder`; their names.

    Raises:
        ValueError: Not a GGUF file, or one without directions.
    """
    path = find(path, "vector file")
    try:
        reader = _gguf().GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path} is not a GGUF file: {error}") from error
    vectors: Vectors = {
        f"layer_{tensor.name.removeprefix('direction.')}": torch.tensor(tensor.data)
        for tensor in reader.tensors
        if re.fullmatch(r"direction\.[0-9]+", tensor.name)
    }
    if not vectors:
        raise ValueError(f"{path} has no tensor direction.<n>: it is not a control vector")
    about = {name: {"layer": int(name.removeprefix("layer_"))} for name in vectors}
    save_vectors(folder, vectors, about)
    return list(vectors)


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.pt"))


def _gguf() -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "control vectors need the package gguf: pip install gguf"
        ) from error
    return gguf
