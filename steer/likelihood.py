"""Log-probabilities that a model gives to answers."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steer.models import Intervention, SteeredModel
from steer.models.batching import padded, run_batches
from steer.models.interventions import take_rows

AUTO_TOKENS = {"cuda": 16384, "cpu": 1024}


def answer_log_probs(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] | None = None,
    batch_size: int | str = "auto",
) -> list[Tensor]:
    """log P of each answer token given the prompt and the answer before it.

    Args:
        model: Steered by what is in force, or by `interventions`; an empty list is unsteered.
        prompts: Token ids; each at least one.
        answers: As many, each at least one token.
        interventions: Per-row ones are for all rows.
        batch_size: Rows in a pass; `auto` suits the device.

    Returns:
        For each row a float32 tensor [tokens of the answer] on the CPU.
    """
    steps = model.interventions() if interventions is None else interventions
    lengths = [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]

    def run(rows: list[int]) -> list[Tensor]:
        of_rows = take_rows(steps, torch.tensor(rows))
        return _batch(model, [prompts[r] for r in rows], [answers[r] for r in rows], of_rows)

    automatic = batch_size == "auto"
    size = len(prompts) if automatic else int(batch_size)
    tokens = AUTO_TOKENS.get(model.device.type, AUTO_TOKENS["cpu"]) if automatic else None
    found: dict[int, Tensor] = {}
    for rows, log_probs in run_batches(lengths, size, run, max_tokens=tokens, fixed=not automatic):
        found.update(zip(rows, log_probs, strict=True))
    return [found[row] for row in range(len(prompts))]


@torch.inference_mode()
def _batch(
    model: SteeredModel,
    prompts: list[Sequence[int]],
    answers: list[Sequence[int]],
    interventions: list[Intervention],
) -> list[Tensor]:
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    longest = max(map(len, answers))
    # Answers end at the right edge, so that the head runs on their columns only.
    ids, _ = padded(rows, rows[0][-1], "left", model.device)
    logits = next_token_logits(model, rows, longest + 1, [len(p) for p in prompts], interventions)
    log_probs = logits[:, :-1].float().log_softmax(dim=-1)
    targets = ids[:, -longest:].to(log_probs.device)
    chosen = log_probs.gather(-1, targets[..., None]).squeeze(-1).cpu()
    return [chosen[n, longest - len(answer) :] for n, answer in enumerate(answers)]


@torch.inference_mode()
def next_token_logits(
    model: SteeredModel,
    rows: Sequence[Sequence[int]],
    keep: int,
    prompt_lengths: Sequence[int],
    interventions: Sequence[Intervention],
) -> Tensor:
    """Logits [batch, keep, vocab] of the last `keep` columns of left-padded `rows`."""
    ids, mask = padded(rows, rows[0][-1], "left", model.device)
    lengths = torch.tensor(prompt_lengths, device=ids.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if not bool(mask.all()):
        inputs |= {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    with model.steering(interventions, prompt_lengths=lengths):
        return cast(Any, model.model)(**inputs, use_cache=False, logits_to_keep=keep).logits
