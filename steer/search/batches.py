"""Answers that are read together, under one steering after another."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.likelihood import last_logits
from steer.models import EditTensor, SteeredModel
from steer.models.batching import padded
from steer.models.hooks import keeping, replaying
from steer.models.prefix import repeated, rows_in
from steer.models.row_steering import join_rows


@dataclass(frozen=True)
class Scored:
    """What a model thinks of a batch of answers, padded on one side.

    Attributes:
        log_probs: [rows, tokens + 1, vocab], float32: of each answer token, and of what follows.
        plain: The same without steering.
        ids: [rows, tokens]: the answers.
        mask: [rows, tokens], bool: where they are.
        made: [rows, tokens + 1], bool: predictions made at the prompt's last token or behind it.
    """

    log_probs: Tensor
    plain: Tensor
    ids: Tensor
    mask: Tensor
    made: Tensor


@dataclass(frozen=True)
class Part:
    """Steerings that begin at one block.

    Attributes:
        lowest: The block.
        prefixed: Whether what the rows begin with can be read apart from them.
        numbers: Of the steerings.
    """

    lowest: int
    prefixed: bool
    numbers: list[int]


class Batch(ABC):
    """Rows that share passes, and what is known of them.

    Args:
        model: What is in force on it does not count.
        rows: Prompt and answer of each.
        prompts: Tokens of each row's prompt.
        prefix: Tokens with which all begin, and which are read apart.
    """

    side: str  # on which answers are padded

    def __init__(
        self, model: SteeredModel, rows: list[list[int]], prompts: list[int], prefix: int
    ) -> None:
        self.model, self.rows, self.prompts, self.prefix = model, rows, prompts, prefix
        self.answers = [row[length:] for row, length in zip(rows, prompts, strict=True)]
        self.ids, mask = padded(self.answers, 0, self.side, model.device)
        self.mask = mask.bool()
        ones = self.mask.new_ones(len(rows), 1)
        both = [self.mask, ones] if self.side == "left" else [ones, self.mask]
        self.made = torch.cat(both, dim=1)

    @abstractmethod
    def read_plain(self, cache: DynamicCache | None, layers: set[int]) -> Tensor:
        """Unsteered log-probabilities; what blocks `layers` gave is kept."""

    @abstractmethod
    def read(self, part: Part, edits: list[list[EditTensor]], cache: DynamicCache | None) -> Tensor:
        """Log-probabilities under each of `edits`, one after the other; [settings * rows, ...]."""

    def scored(self, log_probs: Tensor, plain: Tensor) -> Scored:
        """The figures' argument."""
        device = log_probs.device
        own = [one.to(device) for one in (plain, self.ids, self.mask, self.made)]
        return Scored(log_probs, *own)

    @contextmanager
    def _keeping(self, layers: set[int]) -> Iterator[dict[int, Tensor]]:
        """Yield a dict; once closed, it has the outputs of `layers` in the pass made meanwhile."""
        kept: dict[int, Tensor] = {}
        with ExitStack() as stack:
            blocks = self.model.blocks
            outputs = {n: stack.enter_context(keeping(blocks[n])) for n in layers}
            yield kept
        kept.update({n: output[0] for n, output in outputs.items() if output})

    @contextmanager
    def _steered(
        self,
        part: Part,
        edits: list[list[EditTensor]],
        lengths: Sequence[int],
        kept: dict[int, Tensor],
    ) -> Iterator[None]:
        """Hold the edits of rows whose prompts have `lengths`, on what `kept` has of the blocks."""
        count = len(edits)
        steps = edits[0] if count == 1 else join_rows([e for e in edits for _ in lengths])
        each = torch.tensor([*lengths] * count, device=self.model.device)
        with ExitStack() as stack:
            if part.prefixed and part.lowest in kept:
                blocks = list(self.model.blocks[: part.lowest + 1])
                output = kept[part.lowest].repeat(count, 1, 1)
                stack.enter_context(replaying(blocks, output))
            stack.enter_context(self.model.steering(steps, prompt_lengths=each))
            yield


class WholeRows(Batch):
    """Each row is read by itself."""

    side = "left"
    kept: dict[int, Tensor]

    def read_plain(self, cache: DynamicCache | None, layers: set[int]) -> Tensor:
        """As above."""
        with self._keeping(layers) as self.kept:
            return self._log_probs(1, cache, self.prefix)

    def read(self, part: Part, edits: list[list[EditTensor]], cache: DynamicCache | None) -> Tensor:
        """As above."""
        with self._steered(part, edits, self.prompts, self.kept):
            return self._log_probs(len(edits), cache, self.prefix * part.prefixed)

    def _log_probs(self, count: int, cache: DynamicCache | None, prefix: int) -> Tensor:
        own = [row[prefix:] for row in self.rows] * count
        columns = self.ids.shape[1] + 1
        return last_logits(self.model, own, columns, cache).float().log_softmax(-1)


class SharedPrompts(Batch):
    """Rows of which several have one prompt, which is read once for them."""

    side = "right"
    kept: dict[int, Tensor]  # of the prompts
    behind: dict[int, Tensor]  # of the answers
    state: DynamicCache  # of the prompts, unsteered

    def __init__(
        self, model: SteeredModel, rows: list[list[int]], prompts: list[int], prefix: int
    ) -> None:
        super().__init__(model, rows, prompts, prefix)
        texts = [tuple(row[:length]) for row, length in zip(rows, prompts, strict=True)]
        distinct = list(dict.fromkeys(texts))
        self.texts = [list(text) for text in distinct]
        self.places = torch.tensor([distinct.index(text) for text in texts], device=model.device)

    def read_plain(self, cache: DynamicCache | None, layers: set[int]) -> Tensor:
        """As above."""
        with self._keeping(layers) as self.kept:
            first, mask, state = self._read_prompts(1, cache, self.prefix)
        self.state = deepcopy(state)
        state.batch_select_indices(self.places)
        with self._keeping(layers) as self.behind:
            rest = self._read_answers(1, mask[self.places], state)
        return torch.cat([first[self.places], rest], dim=1)

    def read(self, part: Part, edits: list[list[EditTensor]], cache: DynamicCache | None) -> Tensor:
        """As above."""
        count, texts = len(edits), len(self.texts)
        with self._steered(part, edits, list(map(len, self.texts)), self.kept):
            first, mask, state = self._read_prompts(count, cache, self.prefix * part.prefixed)
        index = torch.cat([self.places + texts * n for n in range(count)])
        state.batch_select_indices(index)
        if part.prefixed and part.lowest in self.kept:
            # What these blocks would have written, had they been computed.
            below = deepcopy(self.state)
            below.batch_select_indices(self.places.repeat(count))
            state.layers[: part.lowest + 1] = below.layers[: part.lowest + 1]
        with self._steered(part, edits, self.prompts, self.behind):
            rest = self._read_answers(count, mask[index], state)
        return torch.cat([first[index], rest], dim=1)

    def _read_prompts(
        self, count: int, cache: DynamicCache | None, prefix: int
    ) -> tuple[Tensor, Tensor, DynamicCache]:
        """Log-probabilities behind each prompt [prompts, 1, vocab], the mask, and the new cache."""
        own = [text[prefix:] for text in self.texts] * count
        ids, mask = padded(own, 0, "left", self.model.device)
        if cache is None:
            state = DynamicCache(config=self.model.model.config)
        else:
            state = cast(DynamicCache, repeated(cache, len(own) // rows_in(cache)))
            mask = torch.cat([mask.new_ones(len(own), prefix), mask], dim=1)
        return self._forward(ids, mask, state, 1)[:, -1:], mask, state

    def _read_answers(self, count: int, mask: Tensor, state: DynamicCache) -> Tensor:
        ids, own = self.ids.repeat(count, 1), self.mask.repeat(count, 1).to(mask.dtype)
        return self._forward(ids, torch.cat([mask, own], dim=1), state, 0)

    def _forward(self, ids: Tensor, mask: Tensor, state: DynamicCache, keep: int) -> Tensor:
        """Log-probabilities, float32, of the last `keep` columns at least; of all where 0."""
        numbers = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        inputs |= {"position_ids": numbers, "logits_to_keep": keep}
        given = {k: v for k, v in inputs.items() if self.model.accepts(k)}
        model: Any = self.model.model
        return model(**given, past_key_values=state, use_cache=True).logits.float().log_softmax(-1)
