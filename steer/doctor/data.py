"""Checks of data: pairs that vectors are made of, and inputs to be answered."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from steer.datasets import (
    Row,
    check_rows,
    dataset_name,
    input_of,
    is_file_name,
    prepare_generation_datasets,
)
from steer.doctor.base import Result, failure, ok, refused, unchecked, warning
from steer.doctor.patient import Patient


def pairs(patient: Patient) -> Iterator[Result]:
    """What `python -m steer.datasets check` finds in the data of the vectors."""
    known = [name for key in patient.run.methods for name in patient.data_of(key)]
    others = [name for name in known if name not in patient.own_files]
    names = dict.fromkeys([*patient.run.settings.steer_train_dataset, *others])
    if not names:
        yield unchecked("no vector names its data, and neither does steer_train_dataset")
    for name in names:
        try:
            rows = patient.rows(name, "train")
        except (ValueError, OSError) as error:
            if name in patient.run.settings.steer_train_dataset:
                yield refused(error, "give a name of dataset_format.yaml, or a file")
            else:
                yield unchecked(not_had(name))
            continue
        yield from _found(dataset_name(name), rows, _held_out(patient, name))


def not_had(name: str) -> str:
    """That a data set which a vector was made of cannot be read."""
    return f"data set {name!r} is not to be had; train_data=FILE names it if it is one's own"


def _held_out(patient: Patient, name: str) -> list[Row] | None:
    # A file of one's own is read as it is, whatever for: it would be held out from itself.
    if is_file_name(name):
        return None
    try:
        return list(patient.rows(name, "valid"))
    except (ValueError, OSError):
        return None


def _found(name: str, rows: Sequence[Row], held_out: list[Row] | None) -> Iterator[Result]:
    findings = check_rows(rows, held_out)
    for one in findings:
        level = failure if one.level == "error" else warning
        yield level(f"{name}: {one.what}{one.where}", one.do)
    if not findings:
        apart = f", none of {len(held_out)} held-out ones among them" if held_out else ""
        yield ok(f"{name}: {len(rows)} rows, nothing found{apart}")


def inputs(patient: Patient) -> Iterator[Result]:
    """What is to be answered is there, and fits into the model."""
    settings = patient.run.settings
    if not settings.generation_data:
        yield unchecked("generation_data names nothing to answer")
        return
    try:
        sets = prepare_generation_datasets(asdict(settings))
        texts = [input_of(r, n) for rows in sets.values() for n, r in enumerate(rows, start=1)]
    except (ValueError, OSError) as error:
        yield refused(error, "give a name of dataset_format.yaml, or a file with inputs")
        return
    chat, tokenizer = settings.chat, patient.ready.tokenizer
    longest = max(texts, key=len)
    length = len(chat.encode(tokenizer, chat.text(tokenizer, longest)))
    room = getattr(patient.ready.model.config, "max_position_embeddings", None)
    new = settings.generation_params.get("max_new_tokens") or 0
    if room and length + new > room:
        yield warning(
            f"the longest input has {length} tokens, with {new} new ones more than the model's "
            f"{room}",
            "shorten it, or lower max_new_tokens",
        )
    else:
        yield ok(f"{len(texts)} inputs of {', '.join(sets)}, the longest of {length} tokens")
