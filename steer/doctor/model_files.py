"""Checks of the model's files: weights, tokenizer, chat template."""

import math
from collections.abc import Iterator
from typing import Any

import torch

from steer.doctor.base import Result, failure, ok, refused, warning
from steer.doctor.patient import TEXTS, Patient
from steer.models.chat import has_template
from steer.models.facts import model_facts

# Of ln(vocabulary), what a guesser loses on each token. A model of 135 M parameters loses a third
# of it on plain English; one that is read in another's tokens loses nearly all.
LOST = 0.75
PLAIN = (
    "The train was late again this morning, so we waited on the platform and talked about the "
    "weather. When it came at last, every seat was taken, and we had to stand all the way into the "
    "city. I think I will take the bus tomorrow."
)


def model(patient: Patient) -> Iterator[Result]:
    """The model can be loaded."""
    source = patient.run.settings.source
    try:
        patient.model = patient.given or source.load()
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        yield refused(
            error, "set model_name_or_path to a folder, .gguf file or Hub id that is there"
        )
        return
    facts = model_facts(patient.model)
    yield ok(
        f"{facts['id'] or 'a model without a name'}: {facts['architecture']}, "
        f"{facts['num_layers']} decoder blocks, {facts['hidden_size']} wide"
    )


def tokenizer(patient: Patient) -> Iterator[Result]:
    """Tokens are the model's."""
    own, config = patient.ready.tokenizer, patient.ready.model.config
    embeddings: Any = patient.ready.model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    do = "load tokenizer and weights from one folder or revision"
    largest = max(own.get_vocab().values())
    if largest >= rows:
        yield failure(
            f"the tokenizer's ids go up to {largest}, the model has {rows} embeddings: it is the "
            "tokenizer of another model",
            do,
        )
        return
    ends: Any = config.get_text_config(decoder=True).eos_token_id
    known = {ends} if isinstance(ends, int) else set(ends or ())
    known |= _ends(patient.ready.model.generation_config)
    if known and own.eos_token_id not in known:
        yield failure(
            f"the tokenizer ends texts with token {own.eos_token_id}, the model with "
            f"{sorted(known)}: answers may never end; it may be the tokenizer of another model",
            do,
        )
        return
    yield from _round_trip(patient, len(own), rows)


def _ends(config: Any) -> set[int]:
    ends = getattr(config, "eos_token_id", None)
    return {ends} if isinstance(ends, int) else set(ends or ())


def _round_trip(patient: Patient, size: int, rows: int) -> Iterator[Result]:
    own: Any = patient.ready.tokenizer
    for text in TEXTS:
        back = own.decode(own(text, add_special_tokens=False)["input_ids"])
        if "".join(back.split()).lower() != "".join(text.split()).lower():
            yield failure(
                f"the tokenizer makes {back!r} of {text!r}: its files are damaged",
                "fetch the tokenizer's files anew",
            )
            return
    yield ok(f"{size} tokens for {rows} embeddings; texts come back as they were")


def padding(patient: Patient) -> Iterator[Result]:
    """There is a padding token, and it goes on the left."""
    own: Any = patient.ready.tokenizer
    if own.pad_token_id is None:
        yield warning(
            "the tokenizer has no padding token: batches that you tokenize yourself fail",
            "tokenizer.pad_token = tokenizer.eos_token; padding is masked, so any token will do",
        )
    if own.padding_side != "left":
        yield warning(
            f"the tokenizer pads on the {own.padding_side}: steer pads rows itself, but in batches "
            "that you tokenize yourself shorter rows would go on behind padding",
            "tokenizer.padding_side = 'left'",
        )
    if own.pad_token_id is not None and own.padding_side == "left":
        yield ok(f"{own.pad_token!r} on the left")


def template(patient: Patient) -> Iterator[Result]:
    """The chat template that is asked for is there."""
    wanted, there = patient.run.settings.use_chat_template, has_template(patient.ready.tokenizer)
    if wanted and not there:
        yield failure(
            "use_chat_template: true, and the tokenizer has no chat template: plain text is used",
            "take the model's instruction-tuned version, or set use_chat_template: false",
        )
    elif there and not wanted:
        yield warning(
            "the model has a chat template, and use_chat_template is false: chat models answer "
            "plain text poorly",
            "set use_chat_template: true, when making vectors too",
        )
    else:
        yield ok("used" if wanted else "none, and none asked for")


@torch.inference_mode()
def language(patient: Patient) -> Iterator[Result]:
    """The model finds plain English likely, read in these tokens."""
    own, model = patient.ready.tokenizer, patient.ready
    ids = torch.tensor([own(PLAIN)["input_ids"]], device=model.device)
    logits = model.model(input_ids=ids).logits[0, :-1].float()
    lost = torch.nn.functional.cross_entropy(logits, ids[0, 1:].to(logits.device))
    mean, guesser = float(lost), math.log(len(own))
    found = f"{mean:.1f} nats a token of plain English, a guesser {guesser:.1f}"
    # Written so that NaN is bad.
    if not mean < LOST * guesser:
        yield warning(
            f"{found}: the model cannot read it",
            "see that weights and tokenizer are of one model, and that the weights are whole; "
            "right for random weights, and for models of other languages",
        )
    else:
        yield ok(found)
