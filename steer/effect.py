"""What steering does, measured: on answers it should make likelier, and on unrelated text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from steer.datasets import Row, answer_of, question_of
from steer.likelihood import REPLAY_BYTES, AnswerScorer, answer_log_probs, last_logits
from steer.models import Add, Answer, ChatFormat, EditLayer, Intervention, SteeredModel
from steer.models.batching import run_batches
from steer.models.prefix import common_start

CONTROLS = 20
CONTROL_PAIRS = 12
RESAMPLES = 10_000
Interventions = Sequence[Intervention]


@dataclass(frozen=True)
class Pair:
    """A held-out pair in tokens: a prompt and the two answers to it."""

    prompt: list[int]
    matching: list[int]
    not_matching: list[int]


@dataclass(frozen=True)
class Effect:
    """Change of log P(matching) - log P(not_matching) that steering makes, in nats a pair.

    Attributes:
        mean: Over the pairs; above 0, steering makes the matching answers likelier.
        low: Lower end of the 95 % bootstrap interval (percentiles, resampling pairs).
        high: Upper end.
        pairs: How many.
        controls: The mean of each of the random vectors of equal norm, seeds 0 to 19, over the
            first `control_pairs` pairs: many vectors are judged, so few pairs are enough.
        control_pairs: How many.
        on_control_pairs: The effect's mean over the same pairs, to compare with.
        source: Where the pairs come from.
    """

    mean: float
    low: float
    high: float
    pairs: int
    controls: list[float]
    control_pairs: int
    on_control_pairs: float
    source: str


def pairs_of(model: SteeredModel, rows: Sequence[Row], chat: ChatFormat) -> list[Pair]:
    """Contrastive rows as tokens, put before the model as `chat` says."""
    return [_pair(model, row, number, chat) for number, row in enumerate(rows, start=1)]


def _pair(model: SteeredModel, row: Row, number: int, chat: ChatFormat) -> Pair:
    question = chat.text(model.tokenizer, question_of(row, number))
    sides = [
        chat.encode(model.tokenizer, f"{question} {answer_of(row, key, number)}")
        for key in ("matching", "not_matching")
    ]
    # Where the question's last tokens merge with an answer's first, they belong to the answers.
    start = common_start([chat.encode(model.tokenizer, question), *sides])
    prompt = sides[0][:start] or [model.first_token]
    return Pair(prompt, sides[0][start:], sides[1][start:])


def measure_effect(
    model: SteeredModel,
    groups: Sequence[tuple[Sequence[Pair], Interventions]],
    source: str,
    controls: int = CONTROLS,
) -> Effect:
    """The effect of each group's interventions on its pairs, all pairs together.

    Args:
        model: What is in force on it does not count.
        groups: Held-out pairs and the interventions to judge on them; several for folds.
        source: Said in the result.
        controls: Random vectors of equal norm to compare with; none where a group's
            interventions add no vector.
    """
    addable = all(
        isinstance(i, EditLayer) and isinstance(i.edit, Add) for _, s in groups for i in s
    )
    seeds = range(controls if addable else 0)
    share = math.ceil(CONTROL_PAIRS / len(groups))
    few = [(pairs[:share], steps) for pairs, steps in groups]
    with tqdm(total=2 + len(seeds), desc="measuring the effect", unit="pass") as bar:
        judge, of_few = _Judge(model, groups, bar), _Judge(model, few, bar)
        # Steered first: the unsteered pass goes on from what this one keeps.
        steered, plain = judge.margins(lambda steps: steps), judge.margins(lambda _: [])
        randoms = [of_few.margins(lambda s, seed=seed: randomised(s, seed)) for seed in seeds]
    changes = torch.cat(steered) - torch.cat(plain)
    before = torch.cat([margins[:share] for margins in plain])
    compared = torch.cat([margins[:share] for margins in steered]) - before
    low, high = bootstrap(changes)
    return Effect(
        mean=float(changes.mean()),
        low=low,
        high=high,
        pairs=len(changes),
        controls=[float((torch.cat(random) - before).mean()) for random in randoms],
        control_pairs=len(before),
        on_control_pairs=float(compared.mean()),
        source=source,
    )


class _Judge:
    """The same pairs under one steering after another; `bar` counts the passes."""

    def __init__(
        self,
        model: SteeredModel,
        groups: Sequence[tuple[Sequence[Pair], Interventions]],
        bar: "tqdm[Any]",
    ) -> None:
        self.steps = [steps for _, steps in groups]
        self.scorers = [_scorer(model, pairs, REPLAY_BYTES // len(groups)) for pairs, _ in groups]
        self.bar = bar

    def margins(self, change: Callable[[Interventions], Interventions]) -> list[Tensor]:
        """Each group's margins, [pairs], under what `change` makes of its interventions."""
        each = zip(self.scorers, self.steps, strict=True)
        found = [_margins(scorer, change(steps)) for scorer, steps in each]
        self.bar.update()
        return found


def _scorer(model: SteeredModel, pairs: Sequence[Pair], replay_bytes: int) -> AnswerScorer:
    prompts = [pair.prompt for pair in pairs]
    answers = [pair.matching for pair in pairs] + [pair.not_matching for pair in pairs]
    return AnswerScorer(model, prompts * 2, answers, replay_bytes=replay_bytes)


def _margins(scorer: AnswerScorer, steps: Interventions) -> Tensor:
    sums = torch.stack([each.sum() for each in scorer.log_probs(steps)])
    matching, not_matching = sums.chunk(2)
    return matching - not_matching


def bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` [n], by resampling (seed 0)."""
    generator, pairs = np.random.default_rng(0), values.double().numpy()
    # One resample at a time: all at once would hold RESAMPLES numbers for every pair.
    means = [
        pairs[generator.integers(len(pairs), size=len(pairs))].mean() for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def randomised(interventions: Interventions, seed: int) -> list[Intervention]:
    """The same additions with vectors of random direction and unchanged norm."""
    generator = torch.Generator().manual_seed(seed)
    changed: list[Intervention] = []
    for step in interventions:
        assert isinstance(step, EditLayer)
        assert isinstance(step.edit, Add)
        vector = step.edit.vector.float().cpu()
        random = torch.randn(vector.shape, generator=generator)
        random *= vector.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        changed.append(EditLayer(step.layer, Add(random, step.edit.strength), step.where))
    return changed


def divergence(model: SteeredModel, texts: Sequence[str], steps: Interventions) -> float:
    """Mean KL(unsteered || steered) of next-token predictions on `texts`, in nats a token."""
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    lengths = [len(row) for row in rows]  # type: ignore[arg-type]
    total, tokens = 0.0, 0

    def run(batch: list[int]) -> Tensor:
        chosen: Any = [rows[row] for row in batch]
        plain, steered = (_log_probs(model, chosen, s) for s in ([], steps))
        each = (plain.exp() * (plain - steered)).sum(-1).cpu()
        return torch.cat([each[n, -len(row) :] for n, row in enumerate(chosen)])

    for _, found in run_batches(lengths, 4, run):
        total, tokens = total + float(found.sum()), tokens + len(found)
    return total / tokens


@torch.inference_mode()
def _log_probs(model: SteeredModel, rows: Sequence[Sequence[int]], steps: Interventions) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    with model.steering(steps, prompt_lengths=lengths):
        return last_logits(model, rows, int(lengths.max())).float().log_softmax(-1)


def perplexity_ratio(
    model: SteeredModel, steered: Sequence[Answer], plain: Sequence[Answer]
) -> float | None:
    """Perplexity of steered answers over that of unsteered ones, both under the untouched model.

    None where one side has no answer of at least one token.
    """
    logs = []
    for answers in (steered, plain):
        kept = [a for a in answers if a.new_ids]
        if not kept:
            return None
        found = answer_log_probs(
            model, [a.prompt_ids for a in kept], [a.new_ids for a in kept], interventions=[]
        )
        logs.append(float(torch.cat(found).mean()))
    return float(np.exp(logs[1] - logs[0]))
