"""Steering vectors on disk: bare tensors, and beside them what they are.

Names are loaded at their first use, so that what is known of vectors is read without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steer.vectors.catalogue import Entry, library_entry, list_library
    from steer.vectors.exchange import (
        export_gguf,
        export_safetensors,
        export_vectors,
        import_gguf,
        import_safetensors,
        import_tensor,
        import_vectors,
    )
    from steer.vectors.hub import pull, push
    from steer.vectors.metadata import disagreement, read_metadata, vector_names
    from steer.vectors.store import Vectors, annotate, load_bundle, load_vectors, save_vectors

_HOMES = {
    "Entry": "catalogue",
    "Vectors": "store",
    "annotate": "store",
    "disagreement": "metadata",
    "export_gguf": "exchange",
    "export_safetensors": "exchange",
    "export_vectors": "exchange",
    "import_gguf": "exchange",
    "import_safetensors": "exchange",
    "import_tensor": "exchange",
    "import_vectors": "exchange",
    "library_entry": "catalogue",
    "list_library": "catalogue",
    "load_bundle": "store",
    "load_vectors": "store",
    "pull": "hub",
    "push": "hub",
    "read_metadata": "metadata",
    "save_vectors": "store",
    "vector_names": "metadata",
}

__all__ = [
    "Entry",
    "Vectors",
    "annotate",
    "disagreement",
    "export_gguf",
    "export_safetensors",
    "export_vectors",
    "import_gguf",
    "import_safetensors",
    "import_tensor",
    "import_vectors",
    "library_entry",
    "list_library",
    "load_bundle",
    "load_vectors",
    "pull",
    "push",
    "read_metadata",
    "save_vectors",
    "vector_names",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
