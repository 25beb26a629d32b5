"""Checks of what the model runs on: packages, device, dtype."""

import importlib.metadata
import platform
from collections.abc import Iterator

import torch
from packaging.requirements import Requirement

from steer.doctor.base import Result, failure, ok, unchecked, warning
from steer.doctor.patient import Patient

PACKAGE = "steer-lm"


def versions(_: Patient) -> Iterator[Result]:
    """Every package that is needed is there, in a version that steer is tested with."""
    try:
        needed = importlib.metadata.requires(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        yield unchecked(f"{PACKAGE} is not installed: which versions it needs is not known")
        return
    wrong = False
    for text in needed:
        one = Requirement(text)
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        problem = _problem(one)
        if problem is not None:
            wrong = True
            yield problem
    if not wrong:
        known = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        shown = ", ".join(f"{name} {version}" for name, version in known.items())
        yield ok(f"Python {platform.python_version()}, {shown}, and all that is needed besides")


def _problem(one: Requirement) -> Result | None:
    do = f'pip install "{one.name}{one.specifier}"'
    try:
        found = importlib.metadata.version(one.name)
    except importlib.metadata.PackageNotFoundError:
        return failure(f"{one.name} is not installed", do)
    if one.specifier.contains(found, prereleases=True):
        return None
    return warning(f"{one.name} is {found}, and steer is tested with {one.specifier}", do)


def device(patient: Patient) -> Iterator[Result]:
    """The best device is used, and computes in the dtype."""
    model = patient.ready
    place, dtype = model.device, str(model.model.dtype).removeprefix("torch.")
    if place.type == "cpu" and torch.cuda.is_available():
        yield warning(
            f"the model is on the CPU, and torch sees {torch.cuda.device_count()} GPUs",
            "set device: auto",
        )
    elif place.type == "cpu" and dtype in ("float16", "bfloat16"):
        yield warning(f"{dtype} on a CPU is slower than float32", "set dtype: auto")
    else:
        yield ok(f"{place}, {dtype}")
