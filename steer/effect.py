"""What steering does, measured: on answers it should make likelier, and on unrelated text."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steer.datasets import SIDES, Row, answer_of, question_of
from steer.likelihood import REPLAY_BYTES, AnswerScorer, last_logits
from steer.models import Answer, ChatFormat, EditPrompt, EditTensor, Intervention, SteeredModel
from steer.models.batching import run_batches
from steer.models.interventions import with_prompt
from steer.models.prefix import common_start
from steer.progress import Bar, progress

CONTROLS = 20
CONTROL_PAIRS = 12
RESAMPLES, RESAMPLED = 10_000, 500  # in all, at once
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
        controls: The mean of each of the random controls (`randomised`), seeds 0 to 19, over the
            first `control_pairs` pairs: many are judged, so few pairs are enough.
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

    def __str__(self) -> str:
        return f"{self.mean:+.2f} nats [{self.low:+.2f}, {self.high:+.2f}]"


@dataclass(frozen=True)
class Group:
    """Held-out pairs, and the interventions to judge on them.

    Attributes:
        pairs: As put before the model without steering prompts.
        steps: What is judged.
        prompted: Gives the same pairs behind the steering prompts of some interventions; needed
            where `steps` have any.
    """

    pairs: Sequence[Pair]
    steps: Interventions
    prompted: Callable[[Interventions], Sequence[Pair]] | None = None

    @classmethod
    def of(
        cls, model: SteeredModel, rows: Sequence[Row], chat: ChatFormat, steps: Interventions
    ) -> "Group":
        """Contrastive rows, put before the model as `chat` says."""
        return cls(
            pairs_of(model, rows, chat), steps, lambda some: pairs_of(model, rows, chat, some)
        )

    def under(self, steps: Interventions) -> Sequence[Pair]:
        """The pairs as they are read under `steps`."""
        if not any(isinstance(step, EditPrompt) for step in steps):
            return self.pairs
        if self.prompted is None:
            raise ValueError("steering prompts are judged on rows only: use Group.of")
        return self.prompted(steps)

    def first(self, count: int) -> "Group":
        """The same for the first pairs only."""
        given = self.prompted
        return Group(self.pairs[:count], self.steps, given and (lambda s: given(s)[:count]))


def pairs_of(
    model: SteeredModel, rows: Sequence[Row], chat: ChatFormat, steps: Interventions = ()
) -> list[Pair]:
    """Contrastive rows as tokens, behind the steering prompts of `steps`."""
    reader = SteeredModel(model.model, model.tokenizer)
    reader.steer("prompts", steps)
    return [_pair(reader, row, number, chat) for number, row in enumerate(rows, start=1)]


def _pair(model: SteeredModel, row: Row, number: int, chat: ChatFormat) -> Pair:
    question = chat.text(model.tokenizer, model.prompted(question_of(row, number)))
    sides = [
        chat.encode(model.tokenizer, f"{question} {answer_of(row, key, number)}") for key in SIDES
    ]
    # Where the question's last tokens merge with an answer's first, they belong to the answers.
    start = common_start([chat.encode(model.tokenizer, question), *sides])
    prompt = sides[0][:start] or [model.first_token]
    return Pair(prompt, sides[0][start:], sides[1][start:])


def measure_effect(
    model: SteeredModel, groups: Sequence[Group], source: str, controls: int = CONTROLS
) -> Effect:
    """The effect of each group's interventions on its pairs, all pairs together.

    Args:
        model: What is in force on it does not count.
        groups: Several for folds.
        source: Said in the result.
        controls: Random ones of equal norm, or length, to compare with.
    """
    share = math.ceil(CONTROL_PAIRS / len(groups))
    few = [group.first(share) for group in groups]
    total = 2 * _count(groups) + controls * _count(few)
    with progress(total=total, what="measuring the effect", unit="pair") as bar:
        judge, of_few = _Judge(model, groups, bar), _Judge(model, few, bar)
        # Steered first: the unsteered pass goes on from what this one keeps.
        steered, plain = judge.margins(lambda steps: steps), judge.margins(lambda _: [])
        randoms = [
            of_few.margins(lambda steps, seed=seed: randomised(model, steps, seed))
            for seed in range(controls)
        ]
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


def _count(groups: Sequence[Group]) -> int:
    return sum(len(group.pairs) for group in groups)


class _Judge:
    """The same pairs under one steering after another; `bar` counts the pairs."""

    def __init__(self, model: SteeredModel, groups: Sequence[Group], bar: Bar) -> None:
        self.model, self.groups, self.bar = model, groups, bar
        self.scorers = [self._scorer(group.pairs) for group in groups]

    def margins(self, change: Callable[[Interventions], Interventions]) -> list[Tensor]:
        """Each group's margins, [pairs], under what `change` makes of its interventions."""
        found = []
        for group, scorer in zip(self.groups, self.scorers, strict=True):
            steps = change(group.steps)
            pairs = group.under(steps)
            # Behind a steering prompt the text is another, and nothing kept of it is of use.
            own = scorer if pairs is group.pairs else self._scorer(pairs)
            found.append(margins(own, steps))
            self.bar.update(len(pairs))
        return found

    def _scorer(self, pairs: Sequence[Pair]) -> AnswerScorer:
        return scorer_of(self.model, pairs, REPLAY_BYTES // len(self.groups))


def scorer_of(
    model: SteeredModel, pairs: Sequence[Pair], replay_bytes: int = REPLAY_BYTES
) -> AnswerScorer:
    """What scores the answers of pairs: all matching ones, then all that are not."""
    prompts = [pair.prompt for pair in pairs]
    answers = [pair.matching for pair in pairs] + [pair.not_matching for pair in pairs]
    return AnswerScorer(model, prompts * 2, answers, replay_bytes=replay_bytes)


def margins(scorer: AnswerScorer, steps: Interventions) -> Tensor:
    """What each pair of `scorer_of` has of log P(matching) - log P(not_matching), [pairs]."""
    sums = torch.stack([each.sum() for each in scorer.log_probs(steps)])
    matching, not_matching = sums.chunk(2)
    return matching - not_matching


def bootstrap(values: Tensor) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` [n], by resampling (seed 0)."""
    generator, pairs = np.random.default_rng(0), values.double().numpy()
    # Not all at once, which would hold RESAMPLES numbers for every pair.
    means = [
        pairs[generator.integers(len(pairs), size=(RESAMPLED, len(pairs)))].mean(axis=1)
        for _ in range(RESAMPLES // RESAMPLED)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def randomised(model: SteeredModel, steps: Interventions, seed: int) -> list[Intervention]:
    """The same edits in random directions of equal norm; prompts of as many random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [
        replace(step, edit=step.edit.randomised(generator))
        if isinstance(step, EditTensor)
        else EditPrompt(_random_text(model, step.text, generator))
        for step in steps
    ]


def _random_text(model: SteeredModel, text: str, generator: torch.Generator) -> str:
    """As many tokens as `text` has, drawn from all that are no special ones."""
    tokenizer: Any = model.tokenizer
    length = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    ordinary = sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    chosen = torch.randint(len(ordinary), (max(length, 1),), generator=generator)
    return tokenizer.decode([ordinary[n] for n in chosen.tolist()])


def divergence(model: SteeredModel, texts: Sequence[str], steps: Interventions) -> float:
    """Mean KL(unsteered || steered) of next-token predictions on `texts`, in nats a token.

    A text's first token is the prompt, as in a search, and the others stand for an answer; gates
    by row read the whole text. Steering prompts stand before each text.
    """
    tokenizer: Any = model.tokenizer
    prompt = _prompt_ids(model, steps)
    whole = [tokenizer(text)["input_ids"] for text in texts]
    # Behind a prompt no text begins anew.
    own = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts] if prompt else whole
    lengths = [len(row) for row in own]
    steps = with_prompt(steps, len(prompt) + 1, len(prompt) + max(lengths))
    total, tokens = 0.0, 0

    def run(batch: list[int]) -> Tensor:
        keep = max(lengths[row] for row in batch)
        plain = _log_probs(model, [whole[row] for row in batch], [], keep)
        steered = _log_probs(model, [prompt + own[row] for row in batch], steps, keep)
        each = (plain.exp() * (plain - steered)).sum(-1).cpu()
        return torch.cat([each[n, -lengths[row] :] for n, row in enumerate(batch)])

    for _, found in run_batches(lengths, 4, run):
        total, tokens = total + float(found.sum()), tokens + len(found)
    return total / tokens


def _prompt_ids(model: SteeredModel, steps: Interventions) -> list[int]:
    texts = [step.text for step in steps if isinstance(step, EditPrompt)]
    tokenizer: Any = model.tokenizer
    return tokenizer(" ".join(texts) + " ")["input_ids"] if texts else []


@torch.inference_mode()
def _log_probs(
    model: SteeredModel, rows: Sequence[Sequence[int]], steps: Interventions, keep: int
) -> Tensor:
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    with model.steering(steps, prompt_lengths=lengths):
        return last_logits(model, rows, keep).float().log_softmax(-1)


def perplexity_ratio(
    score: Callable[[list[list[int]], list[list[int]]], list[Tensor]],
    steered: Sequence[Answer],
    plain: Sequence[Answer],
) -> float | None:
    """Perplexity of steered answers over that of unsteered ones.

    Args:
        score: Gives the log-probabilities of answers to prompts under the untouched model.
        steered: One side.
        plain: The other.

    Returns:
        None where one side has no answer of at least one token.
    """
    logs = []
    for answers in (steered, plain):
        kept = [a for a in answers if a.new_ids]
        if not kept:
            return None
        found = score([a.prompt_ids for a in kept], [a.new_ids for a in kept])
        logs.append(float(torch.cat(found).mean()))
    return float(np.exp(logs[1] - logs[0]))
