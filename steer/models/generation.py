"""Steered answers in batches."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, set_seed

from steer.models.batching import padded, run_batches
from steer.models.chat import ChatFormat
from steer.models.interventions import Intervention, take_rows
from steer.models.sampling import WARPERS, generation_config, seeded
from steer.models.steered_model import SteeredModel
from steer.models.tally import Tally

log = logging.getLogger(__name__)

AUTO_BATCH = {"cuda": 64, "cpu": 32}


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt.

    Attributes:
        prompt_ids: What it read.
        new_ids: What it added, up to and with the end-of-text token.
        text: `new_ids` without special tokens.
        complete: Prompt and answer, special tokens shown.
    """

    prompt_ids: list[int]
    new_ids: list[int]
    text: str
    complete: str


def auto_batch_size(batch_size: int | str, device: torch.device) -> int:
    """`batch_size`, or for `auto` one that suits the device; memory may still halve it."""
    return (
        AUTO_BATCH.get(device.type, AUTO_BATCH["cpu"]) if batch_size == "auto" else int(batch_size)
    )


def generate_batches(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    params: dict[str, Any],
    *,
    interventions: Sequence[Intervention] | None = None,
    seeds: Sequence[tuple[int, ...]] | None = None,
    batch_size: int | str = "auto",
    tally: Tally | None = None,
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Yield `(rows, answers)` for every prompt, longest prompts first.

    Args:
        model: Steered by what is in force on it, or by `interventions`.
        prompts: Token ids of each row.
        params: For `transformers`' `generate`, over the model's own generation settings.
        interventions: Instead of what is in force; per-row ones are for all of `prompts`. An
            empty list is the unsteered model.
        seeds: Each row's, for sampling; the row's number where None.
        batch_size: Rows in a batch; `auto` suits the device and halves when memory runs out.
        tally: Filled with counts of each steered layer.
    """
    config = generation_config(model.model.generation_config, params)
    _warn_of_unused(config, params)
    steps = model.interventions() if interventions is None else interventions
    seeds = [(row,) for row in range(len(prompts))] if seeds is None else seeds

    def run(rows: list[int]) -> list[Answer]:
        of_rows = take_rows(steps, torch.tensor(rows))
        chosen = [prompts[row] for row in rows]
        return _answers(model, chosen, config, of_rows, [seeds[row] for row in rows], tally)

    size = auto_batch_size(batch_size, model.device)
    lengths = [len(prompt) for prompt in prompts]
    yield from run_batches(lengths, size, run, fixed=batch_size != "auto")


def generate(
    model: SteeredModel,
    prompts: Sequence[str],
    *,
    chat: ChatFormat | None = None,
    steered: bool = True,
    **options: Any,
) -> list[Answer]:
    """Answer each prompt, in order.

    Args:
        model: As for `generate_batches`.
        prompts: Users' texts; the steering prompts in force go before them where `steered`.
        chat: How the text is put before the model; plain where None.
        steered: Whether the interventions in force act; False is the untouched model.
        **options: `interventions`, `seeds`, `batch_size` and `tally` as for `generate_batches`;
            the rest goes to `transformers`' `generate`.
    """
    chat = chat or ChatFormat()
    texts = [chat.text(model.tokenizer, model.prompted(p) if steered else p) for p in prompts]
    ids = [chat.encode(model.tokenizer, text) for text in texts]
    ours = ("interventions", "seeds", "batch_size", "tally")
    known = {name: options.pop(name) for name in ours if name in options}
    if not steered:
        known["interventions"] = []
    answers: dict[int, Answer] = {}
    for rows, batch in generate_batches(model, ids, options, **known):
        answers.update(zip(rows, batch, strict=True))
    return [answers[row] for row in range(len(prompts))]


@torch.inference_mode()
def _answers(
    model: SteeredModel,
    prompts: list[Sequence[int]],
    config: GenerationConfig,
    interventions: list[Intervention],
    seeds: list[tuple[int, ...]],
    tally: Tally | None,
) -> list[Answer]:
    pad = cast(int, model.tokenizer.pad_token_id)
    ids, mask = padded(prompts, pad, "left", model.device)
    processors = LogitsProcessorList()
    if config.do_sample and config.num_beams in (None, 1):
        config, processors = seeded(config, seeds)
    elif config.do_sample:
        set_seed(hash(tuple(seeds)) % 2**32)
    lengths = mask.sum(dim=1)
    with model.steering(interventions, prompt_lengths=lengths, tally=tally):
        out = cast(Any, model.model).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            pad_token_id=pad,
            **({"tokenizer": model.tokenizer} if config.stop_strings else {}),
        )
    ends = _end_ids(config, model)
    news = [_until_end(row, ends) for row in out[:, ids.shape[1] :].tolist()]
    return [answer_of_ids(model, list(p), new) for p, new in zip(prompts, news, strict=True)]


def answer_of_ids(model: SteeredModel, prompt: list[int], new: list[int]) -> Answer:
    """The answer that the token ids `new` are, to the prompt `prompt`."""
    text = cast(str, model.tokenizer.decode(new, skip_special_tokens=True))
    return Answer(prompt, new, text, cast(str, model.tokenizer.decode(prompt + new)))


def _end_ids(config: GenerationConfig, model: SteeredModel) -> set[int]:
    ends = config.eos_token_id
    if ends is None:
        ends = model.tokenizer.eos_token_id
    return {ends} if isinstance(ends, int) else set(ends or ())


def _until_end(row: list[int], ends: set[int]) -> list[int]:
    for place, token in enumerate(row):
        if token in ends:
            return row[: place + 1]
    return row


def _warn_of_unused(config: GenerationConfig, params: dict[str, Any]) -> None:
    unused = [name for name in WARPERS if params.get(name) is not None]
    if unused and not config.do_sample:
        log.warning("%s has no effect without do_sample: true", ", ".join(unused))
    if not config.do_sample:
        for name in WARPERS:
            setattr(config, name, None)
