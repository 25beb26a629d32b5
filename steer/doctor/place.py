"""Check that a vector is of the layer that it is used at."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from steer.activations import contrast
from steer.build import build
from steer.datasets import is_pair
from steer.doctor.base import Result, failure, ok, unchecked, warning
from steer.doctor.patient import Patient, StoredVector
from steer.method_files import field_names
from steer.methods.caa import TrainCAA
from steer.vectors.tensors import read_tensor

PAIRS = 12
# By how much the neighbour must be nearer; neighbours of a caa vector have cosines of 0.8 to 0.95.
NEARER = 0.02
# Below this the vector is not along what its pairs differ in, at any of the layers.
UNLIKE = 0.2


def place(patient: Patient) -> Iterator[Result]:
    """A vector lies along what its pairs differ in at its layer, and not at a neighbouring one."""
    compared = False
    for one in patient.stored:
        found = _compared(patient, one)
        if found is not None:
            compared = True
            yield found
    if not compared:
        yield unchecked("no vector has pairs to be read that it was made of")


def _compared(patient: Patient, one: StoredVector) -> Result | None:
    entry = one.entry or {}
    layer = getattr(patient.run.methods[one.key].half, "layers", None) and entry.get("layer")
    data = (entry.get("data") or {}).get("name")
    if layer is None or data is None or "tensors" in entry:
        return None
    try:
        rows = patient.rows(str(data), "train")[:PAIRS]
    except (ValueError, OSError):
        return None
    if not all(map(is_pair, rows)):
        return None
    vector = read_tensor(one.path).double()
    near = [n for n in (layer - 1, layer, layer + 1) if 0 <= n < patient.ready.depth]
    given = {k: v for k, v in entry.get("hparams", {}).items() if k in field_names(TrainCAA)}
    reader = build(TrainCAA, {**given, "layers": near})
    means = contrast(patient.ready, *reader.sides(patient.ready, rows), near).means()
    return _judged(one.path.name, layer, {n: _cosine(vector, m) for n, m in means.items()})


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other.double(), dim=0))


def _judged(name: str, layer: int, cosines: dict[int, float]) -> Result:
    seen = ", ".join(f"{cosine:.2f} at layer {n}" for n, cosine in cosines.items())
    found = f"{name}: cosine to what its pairs differ in is {seen}"
    best: Any = max(cosines, key=cosines.__getitem__)
    if cosines[layer] < -UNLIKE:
        return failure(
            f"{found}: it points away from the matching answers",
            "the sides were swapped: make the vector anew, or turn the sign of multipliers",
        )
    if cosines[best] > cosines[layer] + NEARER and cosines[best] > UNLIKE:
        return failure(
            f"{found}: it is of layer {best}",
            f"use it at layer {best}, as layer_{best}.pt with layers: [{best}], or make the vector "
            f"of layer {layer} anew; tools that count hidden states are one off",
        )
    if abs(cosines[layer]) < UNLIKE:
        return warning(
            f"{found}: it is hardly along it",
            "make the vector anew, or see what else it was made of",
        )
    return ok(found)
