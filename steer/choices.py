"""What a model thinks of the letters of a multiple-choice question, before it says a word."""

import logging
from collections.abc import Callable, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

import torch
from torch import Tensor

from steer.likelihood import last_logits
from steer.models import Intervention, SteeredModel
from steer.models.batching import run_passes

log = logging.getLogger(__name__)


def choice_log_probs(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    interventions: Sequence[Intervention],
    batch_size: int | str = "auto",
) -> list[dict[str, float]]:
    """Log P(letter) as the first token of an answer, in nats: `{"A": ..., "B": ..., ...}` a prompt.

    A letter's probability is that of its tokens with and without a space before it: which of the
    two a model says depends on how the prompt ends.

    Args:
        model: What is in force on it does not count.
        prompts: Token ids, as for an answer.
        counts: Of each prompt's choices, up to 26.
        interventions: Empty is the untouched model.
        batch_size: Rows in a pass; `auto` suits the device.

    Raises:
        ValueError: The tokenizer has no token of its own for one of the letters.
    """
    tokens = [_tokens(model, letter) for letter in ascii_uppercase[: max(counts, default=0)]]

    def run(rows: list[int]) -> Tensor:
        ids = [prompts[row] for row in rows]
        lengths = torch.tensor([len(row) for row in ids], device=model.device)
        with model.steering(interventions, prompt_lengths=lengths):
            found = last_logits(model, ids, 1)[:, 0].float().log_softmax(-1)
        return torch.stack([found[:, one].logsumexp(-1) for one in tokens], -1).cpu()

    found: dict[int, list[float]] = {}
    passes = run_passes([len(p) for p in prompts], batch_size, model.device, run)
    for rows, values in passes:
        found.update(zip(rows, values.tolist(), strict=True))
    return [
        dict(zip(ascii_uppercase, found[row][:count], strict=False))
        for row, count in enumerate(counts)
    ]


def warn_of_vllm(rows: Sequence[Mapping[str, Any]]) -> None:
    """Say that vLLM does not give what a model thinks of the letters, where rows have `choices`."""
    if any(row.get("choices") for row in rows):
        log.warning(
            "engine: vllm gives no log-probabilities of letters: the results will have no "
            "choice_log_probs, which mmlu_by: logprob needs; engine: hf gives them"
        )


def add_choices(
    model: SteeredModel,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[dict[str, Any]],
    prompt_ids: Callable[[SteeredModel, str], list[int]],
    settings: Any,
) -> None:
    """Add what the model thinks of the letters, where a row has `choices`.

    Args:
        model: With what is in force on it.
        rows: As they were answered.
        records: Of each row: `choice_log_probs` is put in, and `orig_choice_log_probs` of the
            untouched model where `settings` ask for its answers.
        prompt_ids: What is read for an input.
        settings: `generate_orig_output` and `batch_size` count.
    """
    asked = [n for n, row in enumerate(rows) if row.get("choices")]
    sides = {"choice_log_probs": model}
    if settings.generate_orig_output:
        sides["orig_choice_log_probs"] = SteeredModel(model.model, model.tokenizer)
    for key, side in sides.items():
        prompts = [prompt_ids(side, rows[n]["input"]) for n in asked]
        counts = [len(rows[n]["choices"]) for n in asked]
        steps = side.interventions()
        found = choice_log_probs(side, prompts, counts, steps, settings.batch_size)
        for n, values in zip(asked, found, strict=True):
            records[n][key] = values


def _tokens(model: SteeredModel, letter: str) -> list[int]:
    tokenizer: Any = model.tokenizer
    ids = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (letter, f" {letter}")
    ]
    single = sorted({one[0] for one in ids if len(one) == 1})
    if not single:
        raise ValueError(f"the tokenizer has no single token for the letter {letter!r}")
    return single
