"""Steered answers in batches."""

import logging
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from transformers import GenerationConfig, LogitsProcessorList, set_seed

from steer.models.batching import fixed_size, padded, run_batches
from steer.models.chat import ChatFormat
from steer.models.continuous import ContinuousDecoder
from steer.models.ends import Ends, limits, settled
from steer.models.interventions import EditTensor, Intervention, check_rows, on_device, take_rows
from steer.models.request import Manner, Request, can_refill, unfollowed
from steer.models.sampling import PaddedPenalty, generation_config, seeded
from steer.models.steered_model import SteeredModel
from steer.models.tally import Tally, merge

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
    """Yield `(rows, answers)` for every prompt as they are finished, longest prompts first.

    Of more prompts than go into a batch, the next takes the place of one that is finished, where
    model and parameters allow that; else batches are fixed.

    Args:
        model: Steered by what is in force on it, or by `interventions`.
        prompts: Token ids of each row; a row without any gets a first token.
        params: For `transformers`' `generate`, over the model's own generation settings.
        interventions: Instead of what is in force; per-row ones are for all of `prompts`. An
            empty list is the unsteered model.
        seeds: Each row's, for sampling; the row's number where None.
        batch_size: Rows in a batch; `auto` suits the device and halves when memory runs out.
        tally: Filled with counts of each steered layer.
    """
    config = settled(generation_config(model.model.generation_config, params), model)
    steps = model.interventions() if interventions is None else interventions
    check_rows(steps, len(prompts))
    prompts = [prompt or [model.first_token] for prompt in prompts]
    most_new = limits(config, prompts)
    seeds = [(row,) for row in range(len(prompts))] if seeds is None else seeds
    fixed = fixed_size(batch_size)
    size = fixed or AUTO_BATCH.get(model.device.type, AUTO_BATCH["cpu"])
    if 1 < size < len(prompts) and can_refill(model) and not unfollowed(config):
        manner, placed = Manner.of(config, model), _placed(steps, model)
        requests = [
            Request(row, list(prompt), most_new[row], manner, _of_row(placed, row), seeds[row])
            for row, prompt in enumerate(prompts)
        ]
        decoder = ContinuousDecoder(model, size, fixed=fixed is not None, tally=tally)
        yield from _refilled(decoder, requests)
        return

    def run(rows: list[int]) -> list[Answer]:
        of_rows = take_rows(steps, torch.tensor(rows))
        chosen, own = [prompts[row] for row in rows], [seeds[row] for row in rows]
        counts: Tally | None = None if tally is None else {}
        most = [most_new[row] for row in rows]
        answers = _answers(model, chosen, config, of_rows, own, most, counts)
        if tally is not None and counts is not None:
            # Not before: passes in which memory ran out do not count.
            merge(tally, counts)
        return answers

    lengths = [len(prompt) for prompt in prompts]
    yield from run_batches(lengths, size, run, fixed=fixed is not None)


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


def _refilled(
    decoder: ContinuousDecoder, requests: Sequence[Request]
) -> Iterator[tuple[list[int], list[Answer]]]:
    """Answers to requests whose keys are rows, as they are finished."""
    for request in sorted(requests, key=lambda one: -len(one.prompt)):
        decoder.add(request)
    while decoder.busy:
        done = [new for new in decoder.step() if new.answer is not None]
        if done:
            rows = [cast(int, new.key) for new in done]
            yield (
                rows,
                [
                    answer_of_ids(decoder.model, requests[row].prompt, cast(list[int], new.answer))
                    for row, new in zip(rows, done, strict=True)
                ],
            )


def _placed(steps: Sequence[Intervention], model: SteeredModel) -> list[Intervention]:
    """The same, where the model is: rows are put together anew for many passes."""
    return [
        replace(step, edit=on_device(step.edit, model.device))
        if isinstance(step, EditTensor) and not model.spread
        else step
        for step in steps
    ]


def _of_row(steps: Sequence[Intervention], row: int) -> list[Intervention]:
    return take_rows(steps, torch.tensor([row]))


@torch.inference_mode()
def _answers(
    model: SteeredModel,
    prompts: list[Sequence[int]],
    config: GenerationConfig,
    interventions: list[Intervention],
    seeds: list[tuple[int, ...]],
    limits: list[int],
    tally: Tally | None,
) -> list[Answer]:
    ids, mask = padded(prompts, cast(int, config.pad_token_id), "left", model.device)
    config, processors = _of_batch(config, seeds, mask)
    _limit(config, model, ids.shape[1], max(limits))
    with model.steering(interventions, prompt_lengths=mask.sum(dim=1), tally=tally):
        out = cast(Any, model.model).generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=processors,
            **({"tokenizer": model.tokenizer} if config.stop_strings else {}),
        )
    ends = Ends(config, model)
    rows = zip(prompts, out[:, ids.shape[1] :].tolist(), limits, strict=True)
    answers = [answer_of_ids(model, list(p), ends.cut(list(p), new[:n])) for p, new, n in rows]
    # An answer's last token is never read; what a row reads behind it is padding.
    stops = torch.tensor([len(a.prompt_ids) + len(a.new_ids) - 1 for a in answers])
    for counts in (tally or {}).values():
        counts.end_at(stops)
    return answers


def _of_batch(
    config: GenerationConfig, seeds: list[tuple[int, ...]], mask: torch.Tensor
) -> tuple[GenerationConfig, LogitsProcessorList]:
    """`config` for one batch, and the processors that keep its rows apart."""
    config, processors = deepcopy(config), LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        processors.append(PaddedPenalty(config.repetition_penalty, mask))
        config.repetition_penalty = 1.0
    if config.do_sample and config.num_beams in (None, 1):
        config, sampling = seeded(config, seeds)
        processors.append(sampling)
    elif config.do_sample:
        set_seed(hash(tuple(seeds)) % 2**32)
    return config, processors


def settings_of(
    model: SteeredModel, prompts: Sequence[Sequence[int]], params: dict[str, Any]
) -> tuple[GenerationConfig, list[int]]:
    """The generation settings that hold under `params`, and most new tokens of each row."""
    config = settled(generation_config(model.model.generation_config, params), model)
    return config, limits(config, prompts)


def answer_of_ids(model: SteeredModel, prompt: list[int], new: list[int]) -> Answer:
    """The answer that the token ids `new` are, to the prompt `prompt`."""
    text = cast(str, model.tokenizer.decode(new, skip_special_tokens=True))
    return Answer(prompt, new, text, cast(str, model.tokenizer.decode(prompt + new)))


def _limit(config: GenerationConfig, model: SteeredModel, width: int, most: int) -> None:
    # transformers warns of every max_new_tokens where the model's own settings have a max_length.
    config.max_new_tokens, config.max_length = None, width + most
    if cast(Any, model.model).generation_config.max_new_tokens is not None:
        config.max_new_tokens, config.max_length = most, None
