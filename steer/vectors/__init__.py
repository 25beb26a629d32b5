"""Steering vectors on disk: bare tensors, and beside them what they are."""

from steer.vectors.exchange import (
    export_gguf,
    export_safetensors,
    export_vectors,
    import_gguf,
    import_safetensors,
    import_vectors,
)
from steer.vectors.store import (
    Vectors,
    annotate,
    disagreement,
    load_bundle,
    load_vectors,
    read_metadata,
    save_vectors,
    vector_names,
)

__all__ = [
    "Vectors",
    "annotate",
    "disagreement",
    "export_gguf",
    "export_safetensors",
    "export_vectors",
    "import_gguf",
    "import_safetensors",
    "import_vectors",
    "load_bundle",
    "load_vectors",
    "read_metadata",
    "save_vectors",
    "vector_names",
]
