"""Checks of vectors on disk: whole, finite, and made for this model, layer and template."""

import re
from collections.abc import Iterator
from typing import Any

from steer.doctor.base import Result, failure, ok, refused, unchecked, warning
from steer.doctor.patient import Patient, StoredVector
from steer.files import file_sha256
from steer.models.facts import model_facts, template_hash
from steer.vectors import disagreement, vector_names
from steer.vectors.tensors import read_tensor, read_tensors

ANEW = "make the vector anew: python vectors_generate.py"
GIVEN = re.compile(r"layer_(\d+)(?!\d)")


def files(patient: Patient) -> Iterator[Result]:
    """Every vector's file is there, whole, and what its metadata describes."""
    try:
        stored = patient.stored
    except ValueError as error:
        yield refused(error, "restore metadata.json, or remove it: vectors load without")
        return
    found = [problem for one in stored for problem in _file(patient, one)]
    missing = [key for key in patient.run.methods if _folder_missing(patient, key)]
    for key in missing:
        folder = patient.run.methods[key].half.steer_vector_load_dir
        yield failure(
            f"{key}: no folder of vectors at {folder}",
            "python vectors_generate.py makes it; a .gguf or .safetensors file becomes one with "
            "python -m steer.vectors import FILE FOLDER",
        )
    yield from found
    if not found and not missing:
        names = ", ".join(f"{one.key}: {one.path.name}" for one in stored)
        yield ok(names or "no method reads vectors from disk")


def _folder_missing(patient: Patient, key: str) -> bool:
    wanted = getattr(patient.run.methods[key].half, "steer_vector_load_dir", None)
    return wanted is not None and key not in patient.folders


def _file(patient: Patient, one: StoredVector) -> Iterator[Result]:
    if not one.path.is_file():
        there = vector_names(one.path.parent)
        layers = sorted(int(match[1]) for name in there if (match := GIVEN.match(name)))
        yield failure(
            f"{one.key}: no {one.path.name} in {one.path.parent}; there are: "
            f"{', '.join(there) or 'no vectors'}",
            f"set layers: {layers}, or run python vectors_generate.py for that layer",
        )
        return
    try:
        tensors = _tensors(one)
    except ValueError as error:
        yield refused(error, ANEW)
        return
    if one.entry is not None and one.entry.get("sha256") != file_sha256(one.path):
        yield failure(
            f"{one.path} is not the file that metadata.json describes (its SHA-256 differs): a "
            "stale copy, or one that was changed",
            f"{ANEW}; or remove its entry of metadata.json",
        )
    if "tensors" not in (one.entry or {}) and hasattr(patient.run.methods[one.key].half, "layers"):
        yield from _values(patient, one, tensors[one.path.stem])


def _tensors(one: StoredVector) -> dict[str, Any]:
    if "tensors" in (one.entry or {}):
        return read_tensors(one.path)[0]
    return {one.path.stem: read_tensor(one.path)}


def _values(patient: Patient, one: StoredVector, vector: Any) -> Iterator[Result]:
    width = patient.ready.d_model
    if list(vector.shape) != [width]:
        yield failure(
            f"{one.path.name} has the shape {list(vector.shape)}, the model is {width} wide",
            "use a vector made with a model of that width, or the model that it was made with",
        )
    elif not vector.any():
        yield failure(
            f"{one.path.name} is all zeros: it steers nothing",
            f"{ANEW}, from pairs whose two sides differ",
        )


def fit(patient: Patient) -> Iterator[Result]:
    """Vectors were made with this model, and each for the layer that its name says."""
    facts, depth, bad = model_facts(patient.ready), patient.ready.depth, False
    for one in patient.stored:
        problem = next(_misfits(one, facts, depth), None)
        if problem is not None:
            bad = True
            yield problem
    unknown = [one.path.name for one in patient.stored if not (one.entry or {}).get("model")]
    if unknown:
        yield warning(
            f"which model {', '.join(unknown)} is for is not known, as of EasyEdit2 or another "
            "tool: model, template and data cannot be checked",
            "see the tool's own notes; its layer n may be hidden state n, which is block n - 1",
        )
    elif not bad:
        yield ok("made with this model, of the same weights" if patient.stored else "none")


def _misfits(one: StoredVector, facts: dict[str, Any], depth: int) -> Iterator[Result]:
    named = GIVEN.match(one.path.stem)
    layer = int(named[1]) if named else None
    if layer is not None and layer >= depth:
        yield failure(
            f"{one.path.name}: the model has layers 0 to {depth - 1}",
            f"set layers to numbers below {depth}, or load the model that the vector is for",
        )
    of = (one.entry or {}).get("layer")
    if layer is not None and isinstance(of, int) and of != layer:
        yield failure(
            f"{one.path.name} was made at layer {of} and is named for layer {layer}",
            f"rename it to layer_{of}.pt, or make the vector of layer {layer}",
        )
    problem = disagreement(one.entry or {}, facts)
    if problem:
        yield failure(
            f"{one.path.name}: {problem}",
            "make the vector with this model, or load the one it was made with; "
            "allow_mismatch: true is for experiments",
        )
    yield from _revisions(one, facts)


def _revisions(one: StoredVector, facts: dict[str, Any]) -> Iterator[Result]:
    theirs = ((one.entry or {}).get("model") or {}).get("revision")
    if theirs and facts["revision"] and theirs != facts["revision"]:
        yield warning(
            f"{one.path.name} was made with revision {theirs[:12]}, this is "
            f"{facts['revision'][:12]}",
            f"set revision: {theirs}, or make the vector anew",
        )


def same_text(patient: Patient) -> Iterator[Result]:
    """Vectors were made from text that was put before the model as it is now."""
    settings, now = patient.run.settings, template_hash(patient.ready)
    compared, bad = False, False
    for one in patient.stored:
        entry = one.entry or {}
        made = entry.get("hparams") or {}
        compared |= "use_chat_template" in made
        for key in ("use_chat_template", "system_prompt", "enable_thinking"):
            if key in made and made[key] != getattr(settings, key):
                bad = True
                yield warning(
                    f"{one.path.name} was made with {key}: {made[key]!r}, and is used with "
                    f"{getattr(settings, key)!r}",
                    f"set {key} alike in both, or make the vector anew",
                )
        theirs = entry.get("chat_template_sha256")
        if made.get("use_chat_template") and settings.use_chat_template and theirs != now:
            bad = True
            yield warning(
                f"{one.path.name} was made with another chat template than the tokenizer has now",
                f"{ANEW}, or load the tokenizer of the same revision",
            )
    if not bad:
        yield (
            ok("as it was when vectors were made")
            if compared
            else unchecked("how the vectors' texts were put is not known")
        )


def load(patient: Patient) -> Iterator[Result]:
    """Methods take their vectors, and say what they do with them."""
    steps = {}
    for key, method in patient.run.methods.items():
        try:
            steps[key] = method.half.interventions(patient.ready, method.half.load(patient.ready))
        except (ValueError, OSError) as error:
            yield refused(error, "mend what the message names; until then nothing is steered")
            return
    if not steps:
        yield failure("no method is to be applied", "list files in apply_steer_hparam_paths")
        return
    patient.steps = steps
    yield ok(", ".join(f"{key}: {_what(found)}" for key, found in steps.items()))


def _what(steps: list[Any]) -> str:
    places = [f"{type(step).__name__} {getattr(step, 'layer', '')}".strip() for step in steps]
    return ", ".join(places[:3]) + (f" and {len(places) - 3} more" if len(places) > 3 else "")
