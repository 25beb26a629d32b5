"""The next token of each row of a batch whose rows have generation settings of their own."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig

from steer.models.ends import Ends
from steer.models.interventions import Intervention
from steer.models.sampling import SeededSampling, warpers_of, warping
from steer.models.steered_model import SteeredModel


@dataclass(frozen=True, eq=False)
class Manner:
    """Generation settings as far as they choose tokens and end answers.

    Attributes:
        ends: Where answers end.
        warpers: For sampling, by name; None for greedy search.
        min_new: Tokens before which no answer ends with an end-of-text token.
        penalty: On tokens that the row has; 1 for none.
    """

    ends: Ends
    warpers: dict[str, float] | None
    min_new: int
    penalty: float

    @classmethod
    def of(cls, config: GenerationConfig, model: SteeredModel) -> "Manner":
        """That of settled generation settings."""
        return cls(
            ends=Ends(config, model),
            warpers=warpers_of(config) if config.do_sample else None,
            min_new=config.min_new_tokens or 0,
            penalty=config.repetition_penalty or 1.0,
        )


@dataclass(frozen=True, eq=False)
class Request:
    """One answer to be made by a `ContinuousDecoder`.

    Attributes:
        key: Names it; unique among those that wait or run.
        prompt: What the model reads, one token at least.
        limit: Most new tokens.
        manner: How tokens are chosen.
        interventions: Its own steering, given for one row; none is the unsteered model.
        seed: Its own random numbers.
    """

    key: Hashable
    prompt: list[int]
    limit: int
    manner: Manner
    interventions: Sequence[Intervention] = ()
    seed: tuple[int, ...] = (0,)


@dataclass(eq=False)
class Row:
    """A request under way.

    Attributes:
        request: What was asked for.
        said: The answer so far.
        read: Tokens of prompt and answer that the model has read.
    """

    request: Request
    said: list[int] = field(default_factory=list)
    read: int = 0

    @property
    def text(self) -> list[int]:
        """Prompt and answer so far."""
        return self.request.prompt + self.said

    def say(self, token: int) -> bool:
        """Add a token; whether the answer ends with it."""
        self.said.append(token)
        over = len(self.said) >= self.request.limit
        return over or self.request.manner.ends.reached(self.request.prompt, self.said)


class NextTokens:
    """Chooses tokens for `rows`, as long as no row comes or goes."""

    def __init__(self, rows: Sequence[Row], device: torch.device) -> None:
        self.rows, self.device = rows, device
        self.penalty = torch.tensor([[row.request.manner.penalty] for row in rows], device=device)
        self.seen: Tensor | None = None
        groups: dict[tuple[tuple[str, float], ...], list[int]] = {}
        for number, row in enumerate(rows):
            warpers = row.request.manner.warpers
            if warpers is not None:
                groups.setdefault(tuple(warpers.items()), []).append(number)
        self.samplers = [self._sampler(dict(key), numbers) for key, numbers in groups.items()]

    def __call__(self, scores: Tensor) -> Tensor:
        """Tokens [rows], given logits [rows, vocab]."""
        scores = self._without_early_ends(self._punished(scores.float()))
        tokens = scores.argmax(dim=-1)
        for numbers, sampling in self.samplers:
            own = tokens[:, None] if len(numbers) == len(tokens) else tokens[numbers, None]
            drawn = sampling.choose(own, scores if len(own) == len(tokens) else scores[numbers])
            tokens[numbers] = drawn.to(tokens.device)
        if self.seen is not None:
            self.seen.scatter_(1, tokens[:, None], True)
        return tokens

    def _sampler(
        self, warpers: dict[str, float], numbers: list[int]
    ) -> tuple[Tensor, SeededSampling]:
        rows = [self.rows[number] for number in numbers]
        seeds = [row.request.seed for row in rows]
        said = [len(row.said) for row in rows]
        index = torch.tensor(numbers, device=self.device)
        return index, SeededSampling(seeds, warping(warpers), said)

    def _punished(self, scores: Tensor) -> Tensor:
        """Scores with those of each row's own tokens made smaller."""
        if all(row.request.manner.penalty == 1 for row in self.rows):
            return scores
        if self.seen is None:
            seen = torch.zeros(scores.shape, dtype=torch.bool)
            for row, one in zip(seen, self.rows, strict=True):
                row[one.text] = True
            self.seen = seen.to(scores.device)
        punished = torch.where(scores < 0, scores * self.penalty, scores / self.penalty)
        return torch.where(self.seen, punished, scores)

    def _without_early_ends(self, scores: Tensor) -> Tensor:
        places = [
            (number, end)
            for number, row in enumerate(self.rows)
            if len(row.said) < row.request.manner.min_new
            for end in row.request.manner.ends.tokens
            if end < scores.shape[1]
        ]
        if places:
            index = torch.tensor(places, device=scores.device).unbind(1)
            scores = scores.index_put(index, scores.new_tensor(-torch.inf))
        return scores
