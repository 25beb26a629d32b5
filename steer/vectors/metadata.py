"""What is known of vectors, from the files beside them; nothing here needs torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer.files import read_json

FORMAT_VERSION = 1
METADATA = "metadata.json"


def read_metadata(folder: str | Path) -> dict[str, Any] | None:
    """The folder's `metadata.json`; None where it has none.

    Raises:
        ValueError: The file is broken, or of a version that this library does not know.
    """
    path = Path(folder) / METADATA
    return check_metadata(read_json(path), path) if path.is_file() else None


def check_metadata(metadata: Any, origin: str | Path) -> dict[str, Any]:
    """`metadata`, unless it is not what `save_vectors` writes.

    Raises:
        ValueError: It is not; the message names `origin`.
    """
    entries = metadata.get("vectors") if isinstance(metadata, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) for e in entries.values()):
        raise ValueError(
            f"{origin} is not a steering vector's metadata: it has no entries under 'vectors'"
        )
    version = metadata.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{origin} has format_version {version!r}; this version of steer reads 1 to "
            f"{FORMAT_VERSION}: update steer"
        )
    return metadata


def vector_names(folder: Path) -> list[str]:
    """Names of the vectors in `folder`, `layer_2` before `layer_10`."""
    return sorted((path.stem for path in folder.glob("*.pt")), key=_in_text_and_number)


def _in_text_and_number(name: str) -> list[str | int]:
    return [int(part) if n % 2 else part for n, part in enumerate(re.split(r"(\d+)", name))]


def disagreement(entry: Mapping[str, Any], model: Mapping[str, Any]) -> str | None:
    """Why a vector with the metadata `entry` is not for the model of these facts, if it is not."""
    layer, made_with = entry.get("layer"), entry.get("model") or {}
    last = model["num_layers"] - 1
    if isinstance(layer, int) and layer > last:
        return f"it is for layer {layer}, the model {model['id']} has layers 0 to {last}"
    theirs, ours = made_with.get("fingerprint"), model["fingerprint"]
    if not made_with or (theirs == ours and ours is not None):
        return None
    if made_with.get("id") != model["id"]:
        return f"it was made with {made_with.get('id')}, the model is {model['id']}"
    # The same name; in another dtype the same weights may have another fingerprint.
    comparable = theirs and ours and made_with.get("dtype") == model["dtype"]
    return f"it was made with other weights of the name {model['id']!r}" if comparable else None
