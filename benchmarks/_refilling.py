"""Runs of `generation.py` in which rows come and go, or have steering of their own."""

import random
from collections.abc import Sequence

import torch

from steer.models import Add, EditLayer, SteeredModel
from steer.models.batching import padded, run_batches
from steer.models.continuous import ContinuousDecoder
from steer.models.ends import settled
from steer.models.request import Manner, Request
from steer.models.sampling import generation_config
from steer.models.tally import Tally

# No vocabulary has that token: answers end by their length alone.
NEVER = {"do_sample": False, "eos_token_id": 2**40}


def drawn(number: int, lowest: int, highest: int) -> list[int]:
    """Lengths of answers (seed 0)."""
    dice = random.Random(0)
    return [dice.randint(lowest, highest) for _ in range(number)]


def recipes(model: SteeredModel, number: int) -> list[list[EditLayer]]:
    """Random vectors, each at two layers (seed 0)."""
    dice = torch.Generator().manual_seed(0)
    layers = (model.depth // 3, model.depth // 2)

    def vector() -> torch.Tensor:
        return torch.randn(model.d_model, generator=dice).to(model.device)

    return [[EditLayer(layer, Add(vector())) for layer in layers] for _ in range(number)]


def refilled(
    model: SteeredModel,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    steering: Sequence[list[EditLayer]],
    size: int,
) -> dict[int, list[int]]:
    """Answers by row; `steering` is given in turn."""
    tally: Tally = {}
    config = settled(generation_config(model.model.generation_config, NEVER), model)
    manner = Manner.of(config, model)
    decoder = ContinuousDecoder(model, size, fixed=True, tally=tally)
    for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
        own = steering[row % len(steering)]
        decoder.add(Request(row, prompts[row], lengths[row], manner, own))
    answers: dict[int, list[int]] = {}
    while decoder.busy:
        answers |= {new.key: new.answer for new in decoder.step() if new.answer is not None}  # type: ignore[misc]
    for counts in tally.values():
        counts.summary()
    return answers


def fixed(
    model: SteeredModel,
    prompts: Sequence[list[int]],
    lengths: Sequence[int],
    steps: list[EditLayer],
    size: int,
) -> dict[int, list[int]]:
    """Answers by row, from batches sorted by prompt length; each waits for its longest answer."""
    tally: Tally = {}

    def run(rows: list[int]) -> list[list[int]]:
        ids, mask = padded([prompts[row] for row in rows], 0, "left", model.device)
        most = max(lengths[row] for row in rows)
        with model.steering(steps, prompt_lengths=mask.sum(dim=1), tally=tally):
            out = model.model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, max_new_tokens=most, pad_token_id=0, **NEVER
            )
        return out[:, ids.shape[1] :].tolist()

    answers: dict[int, list[int]] = {}
    with torch.inference_mode():
        for rows, some in run_batches([len(prompt) for prompt in prompts], size, run):
            answers |= {row: new[: lengths[row]] for row, new in zip(rows, some, strict=True)}
    for counts in tally.values():
        counts.summary()
    return answers
