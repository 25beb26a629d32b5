"""The next token of each row of a batch whose rows have generation settings of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steer.models.request import Row
from steer.models.sampling import SeededSampling, warping


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
