"""The recipes, prompts and truth of benchmarks/engines.py, and how its figures are kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steer.engines.recipes import Recipe
from steer.models import (
    GENERATED,
    Add,
    AddKeepingNorm,
    ChatFormat,
    EditHeadInput,
    EditLayer,
    LowRank,
    ProjectOut,
    SteeredModel,
    generate_batches,
)

TOKENS = 16
# Of the answer, those whose distribution is compared: the first is said behind the prompt's pass.
STEPS = (0, 1, 7, 15)
PROMPTS = (
    "What did you think of the film?",
    "Describe the food at the station.",
    "Tell me, in two or three sentences, about the weather on the coast in autumn.",
)
GREEDY = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}

# Of a prompt, its answer and a recipe: log-probabilities [len(STEPS), vocab].
Engine = Callable[[list[int], list[int], Recipe], Tensor]


def recipes(model: SteeredModel) -> dict[str, Recipe]:
    """One of each kind, of random vectors about as strong as those that people use."""
    dice = torch.Generator().manual_seed(0)
    depth, width = model.depth, model.d_model
    vectors = torch.randn(8, width, generator=dice)
    middle, every = depth // 2, range(1, depth)
    low_rank = LowRank(vectors[4:6].T, vectors[6:8].T, torch.full((2,), 0.003))
    return {
        "add, one layer": [EditLayer(middle, Add(vectors[0], 2.0))],
        "add, every layer": [EditLayer(layer, Add(vectors[0], 0.2)) for layer in every],
        "add, generated tokens": [EditLayer(middle, Add(vectors[1], 2.0), GENERATED)],
        "add, norm kept": [EditLayer(middle, AddKeepingNorm(vectors[2], 2.0))],
        "project out": [EditLayer(layer, ProjectOut(vectors[3])) for layer in every],
        "LM-Steer": [EditHeadInput(low_rank)],
    }


def prompts_of(model: SteeredModel) -> list[list[int]]:
    """The prompts as token ids, as the chat template puts them."""
    chat = ChatFormat(use_chat_template=True)
    texts = [chat.text(model.tokenizer, prompt) for prompt in PROMPTS]
    return [chat.encode(model.tokenizer, text) for text in texts]


def log_probs(model: SteeredModel, prompt: list[int], answer: list[int], recipe: Recipe) -> Tensor:
    """The truth: one row read whole, by hooks; log-probabilities [len(STEPS), vocab]."""
    ids = torch.tensor([prompt + answer], device=model.device)
    lengths = torch.tensor([len(prompt)], device=model.device)
    with torch.inference_mode(), model.steering(recipe, prompt_lengths=lengths):
        logits = model.model(input_ids=ids, use_cache=False).logits[0]  # type: ignore[operator]
    return logits[[len(prompt) - 1 + step for step in STEPS]].float().log_softmax(-1).cpu()


def answer(model: SteeredModel, prompt: list[int], recipe: Recipe) -> list[int]:
    """The greedy answer under a recipe, by hooks."""
    ((_, (found,)),) = generate_batches(model, [prompt], GREEDY, interventions=recipe)
    return found.new_ids


class Truth:
    """What engines are compared with, kept so that one of another environment can be.

    Args:
        folder: Where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.figures = folder / "differences.json"
        self.values = folder / "truth.safetensors"

    def make(self, model: SteeredModel) -> None:
        """Have transformers answer, and keep what it says."""
        found: dict[str, Tensor] = {}
        for name, recipe in recipes(model).items():
            for number, prompt in enumerate(prompts_of(model)):
                said = answer(model, prompt, recipe)
                found[f"{name}/{number}/answer"] = torch.tensor(said)
                found[f"{name}/{number}/log_probs"] = log_probs(model, prompt, said, recipe)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_file(found, self.values)
        self.figures.write_text("{}\n", encoding="utf-8")

    def compare(
        self, model: SteeredModel, label: str, engine: Engine, only: Sequence[str] = ()
    ) -> None:
        """Keep the largest difference of an engine's log-probabilities for each recipe."""
        truth, row = load_file(self.values), {}
        for name, recipe in recipes(model).items():
            if only and name not in only:
                continue
            apart = 0.0
            for number, prompt in enumerate(prompts_of(model)):
                said = truth[f"{name}/{number}/answer"].tolist()
                found = engine(prompt, said, recipe)
                wanted = truth[f"{name}/{number}/log_probs"]
                apart = max(apart, float((found - wanted).abs().max()))
            row[name] = apart
        kept = json.loads(self.figures.read_text(encoding="utf-8")) | {label: row}
        self.figures.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")

    def table(self) -> str:
        """All figures, as Markdown."""
        kept = json.loads(self.figures.read_text(encoding="utf-8"))
        names = list(dict.fromkeys(name for row in kept.values() for name in row))
        lines = ["| engine | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
        for label, row in kept.items():
            figures = [f"{row[name]:.1e}" if name in row else "not possible" for name in names]
            lines.append(f"| {label} | " + " | ".join(figures) + " |")
        return "\n".join(lines)
