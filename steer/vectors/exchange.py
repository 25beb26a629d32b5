"""Vectors to and from other programs: safetensors, llama.cpp's control vectors, bare tensors.

GGUF control vectors (llama.cpp `--control-vector`, repeng): architecture `controlvector`, how many
layers there are in `controlvector.layer_count`, and for each a float32 tensor `direction.<n>`; n is
the block whose output it is added to, counted from 0. llama.cpp refuses `direction.0`.
"""

import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from steer.build import pick
from steer.files import find, writing
from steer.vectors.metadata import check_metadata, read_metadata, vector_names
from steer.vectors.store import Vectors, load_vectors, save_vectors
from steer.vectors.tensors import read_tensor

Entries = dict[str, dict[str, Any]]


def export_vectors(folder: str | Path, path: str | Path) -> list[str]:
    """Put the vectors of `folder` into the one file `path`; their names.

    Raises:
        ValueError: `path` ends in neither `.safetensors` nor `.gguf`, or the vectors do not suit.
    """
    return pick("ending", Path(path).suffix, EXPORTS)(folder, path)


def import_vectors(path: str | Path, folder: str | Path, layer: int | None = None) -> list[str]:
    """Write the vectors of the one file `path` into `folder`; their names.

    Args:
        path: `.safetensors`, `.gguf`, or a bare tensor in a `.pt` file.
        folder: As `save_vectors` has it.
        layer: That a bare tensor is for; see `import_tensor`.

    Raises:
        ValueError: Another ending, a broken file, or a layer for a file that says its own.
    """
    ending = Path(path).suffix
    if ending == ".pt":
        return import_tensor(path, folder, layer)
    read = pick("ending", ending, IMPORTS | {".pt": import_tensor})
    if layer is not None:
        raise ValueError(f"layer {layer} is for .pt files: {path} says itself what it is for")
    return read(path, folder)


def import_tensor(path: str | Path, folder: str | Path, layer: int | None = None) -> list[str]:
    """Write the bare tensor [d_model] in `path` as `layer_<n>.pt` into `folder`; its name.

    As EasyEdit2 publishes vectors: `layer_24.pt`, or `personality.pt`. Nothing in the file is run.

    Args:
        path: The `.pt` file.
        folder: As `save_vectors` has it.
        layer: Decoder block that it is for; that in the file's name where None.

    Raises:
        ValueError: No layer is known, or the file does not hold one tensor of one dimension.
    """
    path = find(path, "vector file")
    named = re.match(r"layer_(\d+)(?!\d)", path.stem)
    block = layer if layer is not None or named is None else int(named[1])
    if block is None or block < 0:
        raise ValueError(
            f"{path} does not say which decoder block it is for: give --layer N, counted from 0 "
            "(EasyEdit2's demo vectors are for block 24 of gemma-2-9b)"
        )
    vector = read_tensor(path)
    if vector.ndim != 1:
        raise ValueError(f"{path} must hold one vector: got the shape {list(vector.shape)}")
    name, origin = f"layer_{block}", {"imported_from": "bare tensor", "imported_file": path.name}
    save_vectors(folder, {name: vector}, {name: {"layer": block, **origin}})
    return [name]


def export_safetensors(folder: str | Path, path: str | Path) -> list[str]:
    """Put all vectors of `folder`, and its metadata, into the one file `path`; their names.

    Raises:
        ValueError: There is no vector.
    """
    folder = find(folder, "vector folder")
    names = vector_names(folder)
    if not names:
        raise ValueError(f"{folder} has no vectors: nothing to export")
    metadata = read_metadata(folder)
    header = {} if metadata is None else {"steer": json.dumps(metadata)}
    data = save(load_vectors(folder, names), metadata=header)
    with writing(path, "wb") as file:
        file.write(data)
    return names


def import_safetensors(path: str | Path, folder: str | Path) -> list[str]:
    """Write the vectors of the safetensors file `path` into `folder`; their names.

    Raises:
        ValueError: Not a safetensors file, or one without tensors.
    """
    path = find(path, "vector file")
    try:
        with safe_open(path, "pt") as file:
            vectors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = (file.metadata() or {}).get("steer")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    if not vectors:
        raise ValueError(f"{path} has no tensors: nothing to import")
    save_vectors(folder, vectors, {} if header is None else _entries(path, header))
    return list(vectors)


def _entries(path: Path, header: str) -> Entries:
    try:
        metadata = json.loads(header)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: its metadata 'steer' is broken: {error}") from error
    return check_metadata(metadata, path)["vectors"]


def export_gguf(folder: str | Path, path: str | Path) -> list[str]:
    """Write the vectors of `folder`, one a layer, as a control vector of llama.cpp; their names.

    Raises:
        ValueError: Layer 0 is among them, which llama.cpp does not have; there is no vector, more
            than one of a layer, or they differ in width.
    """
    folder = find(folder, "vector folder")
    layers = _layers(folder)
    vectors = load_vectors(folder, list(layers.values()))
    if len({tuple(vector.shape) for vector in vectors.values()}) > 1 or any(
        vector.ndim != 1 for vector in vectors.values()
    ):
        raise ValueError(f"{folder}: a control vector needs vectors of one dimension and one width")
    entries: Entries = (read_metadata(folder) or {}).get("vectors", {})
    kinds = {entries.get(name, {}).get("model", {}).get("model_type") for name in vectors}
    hint = next(iter(kinds)) if len(kinds) == 1 else None
    directions = {layer: vectors[name].float().numpy() for layer, name in layers.items()}
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch, "vector.gguf")
        _write_gguf(part, hint or "unknown", directions)
        with writing(path, "wb") as file:
            file.write(part.read_bytes())
    return list(vectors)


def _layers(folder: Path) -> dict[int, str]:
    """Layer -> the name of its vector."""
    found: dict[int, str] = {}
    for name in vector_names(folder):
        match = re.match(r"layer_(\d+)(?!\d)", name)
        layer = int(match[1]) if match else None
        if layer is None:
            raise ValueError(f"{folder}: which layer {name} is for is not known: name it layer_<n>")
        if layer in found:
            raise ValueError(
                f"{folder} has two vectors for layer {layer}, {found[layer]} and {name}: a control "
                "vector holds one; export to safetensors"
            )
        found[layer] = name
    if not found:
        raise ValueError(f"{folder} has no vectors: nothing to export")
    if 0 in found:
        raise ValueError(
            f"{folder} has a vector for layer 0, which llama.cpp's control vectors do not have: "
            "use layer 1 or later, or export to safetensors"
        )
    return found


def _write_gguf(path: Path, hint: str, directions: dict[int, np.ndarray]) -> None:
    import gguf  # slow to import, and seldom needed

    writer = gguf.GGUFWriter(path, "controlvector")
    try:
        writer.add_string("controlvector.model_hint", hint)
        writer.add_uint32("controlvector.layer_count", len(directions))
        for layer, direction in directions.items():
            writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def import_gguf(path: str | Path, folder: str | Path) -> list[str]:
    """Write the directions of a control vector of llama.cpp or repeng into `folder`; their names.

    Raises:
        ValueError: Not a GGUF file, or one without directions.
    """
    path = find(path, "vector file")
    layers, hint = _read_gguf(path)
    if not layers:
        raise ValueError(f"{path} has no tensor direction.<n>: it is not a control vector")
    vectors = Vectors({f"layer_{n}": torch.from_numpy(v) for n, v in layers.items()})
    origin = {"imported_from": "GGUF control vector", "model_hint": hint}
    save_vectors(folder, vectors, {f"layer_{n}": {"layer": n, **origin} for n in layers})
    return list(vectors)


def _read_gguf(path: Path) -> tuple[dict[int, np.ndarray], str | None]:
    """Layer -> direction in float32, whatever type it has in the file; and the model's kind."""
    import gguf  # slow to import, and seldom needed

    try:
        reader: Any = gguf.GGUFReader(path)
        found = {
            int(match[1]): np.array(gguf.dequantize(tensor.data, tensor.tensor_type))
            for tensor in reader.tensors
            if (match := re.fullmatch(r"direction\.(\d+)", tensor.name))
        }
        field = reader.get_field("controlvector.model_hint")
        hint = None if field is None else str(field.contents())
    except (ValueError, IndexError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{path} is not a GGUF file that can be read: {error}") from error
    return dict(sorted(found.items())), hint


EXPORTS: dict[str, Callable[[str | Path, str | Path], list[str]]] = {
    ".safetensors": export_safetensors,
    ".gguf": export_gguf,
}
IMPORTS: dict[str, Callable[[str | Path, str | Path], list[str]]] = {
    ".safetensors": import_safetensors,
    ".gguf": import_gguf,
}
