"""What identifies a model, for the files that are made with it."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steer.models.embedded import EMBEDDED, steer_home
from steer.models.steered_model import SteeredModel


def model_facts(model: SteeredModel) -> dict[str, Any]:
    """Id, architecture, sizes, revision, dtype and weight fingerprint of a model."""
    config: Any = model.model.config
    return {
        "id": _id(str(config.name_or_path)),
        "architecture": type(model.model).__name__,
        "model_type": config.model_type,
        "hidden_size": model.d_model,
        "num_layers": model.depth,
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(model.model.dtype).removeprefix("torch."),
        "fingerprint": weight_fingerprint(model.model),
    }


def template_hash(model: SteeredModel) -> str | None:
    """SHA-256 of the tokenizer's chat template; None where it has none."""
    template = getattr(model.tokenizer, "chat_template", None)
    return hashlib.sha256(str(template).encode("utf-8")).hexdigest() if template else None


def _id(name: str) -> str:
    path = Path(name)
    if path.is_relative_to(steer_home()):
        return EMBEDDED
    return path.name if path.is_dir() else name


def weight_fingerprint(model: nn.Module) -> str | None:
    """A hash of some weights, the same whatever device the model is loaded on; mostly, what dtype.

    Reads the embedding's first rows and every one-dimensional parameter's start, which
    quantisation leaves alone, through bfloat16. float32 weights loaded in float16 are rounded
    twice, so their hash is another. None where accelerate has offloaded some of them.
    """
    digest = hashlib.sha256()
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    chosen = {n: p for n, p in model.named_parameters() if p.ndim == 1}
    for name, values in [("embedding", embedding), *sorted(chosen.items())]:
        if values.device.type == "meta":
            return None
        start = values.detach().flatten()[:256].to("cpu", torch.bfloat16).view(torch.int16)
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(start.numpy().tobytes())
    return digest.hexdigest()
