"""Interventions as bytes, for another process: tensors as safetensors, all else as JSON.

Nothing is run when they are read: only the data classes that are named here can come out.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from steer.models import (
    Add,
    AddKeepingNorm,
    EditHeadInput,
    EditLayer,
    EditLogits,
    EditTensor,
    LowRank,
    Positions,
    ProjectOut,
)
from steer.saes.clamping import Clamp
from steer.saes.sae import SAE

KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(EditLayer, EditHeadInput, EditLogits, Positions),
        *(Add, AddKeepingNorm, ProjectOut, LowRank, Clamp, SAE),
    )
}
_KIND, _TENSOR, _MAPPING = "kind", "tensor", "mapping"


def pack(edits: Sequence[EditTensor]) -> bytes:
    """`edits` as bytes.

    Raises:
        ValueError: One holds what cannot be sent, such as a mask of positions.
    """
    tensors: dict[str, Tensor] = {}
    plain = [_plain(edit, tensors) for edit in edits]
    text = json.dumps(plain).encode("utf-8")
    body = save(tensors) if tensors else b""
    return len(text).to_bytes(8, "big") + text + body


def unpack(data: bytes) -> list[EditTensor]:
    """What `pack` was given; tensors on the CPU.

    Raises:
        ValueError: Bytes that `pack` did not make.
    """
    size = int.from_bytes(data[:8], "big")
    text, body = data[8 : 8 + size], data[8 + size :]
    return [_made(value, load(body) if body else {}) for value in json.loads(text)]


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: name}
    if is_dataclass(value):
        name = type(value).__name__
        if KINDS.get(name) is not type(value):
            raise ValueError(f"{name} cannot be sent to another process: {', '.join(KINDS)} can")
        return {_KIND: name} | {
            f.name: _plain(getattr(value, f.name), tensors) for f in fields(value)
        }
    if isinstance(value, dict):
        return {_MAPPING: [[k, _plain(v, tensors)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_plain(one, tensors) for one in value]
    return value


def _made(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_made(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if _TENSOR in value:
        return tensors[value[_TENSOR]]
    if _MAPPING in value:
        return {key: _made(one, tensors) for key, one in value[_MAPPING]}
    kind = KINDS.get(value[_KIND])
    if kind is None:
        raise ValueError(f"unknown kind {value[_KIND]!r}: known are {', '.join(KINDS)}")
    return kind(**{k: _made(v, tensors) for k, v in value.items() if k != _KIND})
