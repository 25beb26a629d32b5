"""What tests of the vLLM engine share: a model that vLLM can run on a CPU, engines, recipes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny import ids_of, steered, tiny_config

from steer.engines.options import EngineOptions
from steer.engines.recipes import Recipe, layout_of
from steer.engines.vllm import VLLMEngine
from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    AddKeepingNorm,
    EditHeadInput,
    EditLayer,
    EditLogits,
    LowRank,
    ProjectOut,
    SteeredModel,
    generate_batches,
)
from steer.models.tally import Tally
from steer.saes.clamping import Clamp
from steer.saes.sae import SAE

D, TOKENS = 128, 12
# vLLM's attention on a CPU wants heads of 32 and more, and two workers want heads to share.
SIZES = {
    "hidden_size": D,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
GREEDY = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
# Passes of so few tokens that longer prompts are read in several; small blocks of the cache.
CHUNKED = {"max_num_batched_tokens": 32, "max_num_seqs": 8, "block_size": 32}
_DICE = torch.Generator().manual_seed(0)
VECTORS = torch.randn(12, D, generator=_DICE)


def llama() -> SteeredModel:
    return steered(tiny_config("llama", **SIZES))


def saved(model: SteeredModel, folder: Path) -> Path:
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def clamp() -> Clamp:
    enc, dec = torch.randn(2, D, 40, generator=_DICE)
    sae = SAE(enc, torch.zeros(40), dec.T.contiguous(), torch.zeros(D))
    return Clamp(sae, [1, 4], torch.tensor([9.0, -9.0]))


RECIPES: dict[str, Recipe] = {
    "none": [],
    "add": [EditLayer(1, Add(VECTORS[0], 3.0))],
    "add more": [EditLayer(1, Add(VECTORS[0], 6.0))],
    "all layers": [EditLayer(n, Add(VECTORS[n])) for n in range(4)],
    "keep norm": [EditLayer(2, AddKeepingNorm(VECTORS[5], 4.0))],
    "project out": [EditLayer(1, ProjectOut(VECTORS[6]))],
    "two of a layer": [EditLayer(1, Add(VECTORS[1])), EditLayer(1, ProjectOut(VECTORS[2]))],
    "from prompt end": [EditLayer(1, Add(VECTORS[7], 4.0), FROM_PROMPT_END)],
    "generated": [EditLayer(2, Add(VECTORS[8], 4.0), GENERATED)],
    "prompt, then other": [
        EditLayer(1, Add(VECTORS[9], 3.0), PROMPT),
        EditLayer(2, Add(VECTORS[10], 3.0), GENERATED),
    ],
    "clamp": [EditLayer(3, clamp())],
    "head": [EditHeadInput(LowRank(VECTORS[:3].T, VECTORS[3:6].T, torch.full((3,), 0.02)))],
    "logits": [EditLogits(Add(torch.linspace(-4, 4, 258)))],
}
ALL = list(RECIPES.values())


def engine_of(
    model: SteeredModel, path: Path, recipes: Sequence[Recipe], **more: Any
) -> VLLMEngine:
    """An engine, in float32, for `recipes`."""
    options = EngineOptions(engine="vllm", **more)
    options.check_engine()
    return VLLMEngine(model, str(path), "float32", layout_of(recipes), options)


def answers_of(
    engine: VLLMEngine,
    prompts: Sequence[list[int]],
    recipes: Sequence[Recipe],
    tally: Tally | None = None,
    **params: Any,
) -> list[list[int]]:
    """The new tokens of each prompt under its recipe, all in one batch."""
    found: dict[int, list[int]] = {}
    seeds = [(row,) for row in range(len(prompts))]
    for rows, answers in engine.batches(prompts, GREEDY | params, recipes, seeds, tally):
        found |= {row: one.new_ids for row, one in zip(rows, answers, strict=True)}
    return [found[row] for row in range(len(prompts))]


def alone(
    model: SteeredModel,
    prompt: list[int],
    recipe: Recipe,
    tally: Tally | None = None,
    **params: Any,
) -> list[int]:
    """The same of one prompt by transformers and hooks."""
    given = [prompt]
    ((_, answers),) = generate_batches(
        model, given, GREEDY | params, interventions=recipe, tally=tally
    )
    return answers[0].new_ids


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    return ids_of(lengths, seed=3)
