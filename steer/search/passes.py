"""Many steerings of the same answers: what lies below a steered block is computed once for all.

A batch is read once unsteered, and the output of every block at which some steering begins is kept.
Each steering then goes on from there. Where a pass has room for it, several steerings that begin
at the same block are rows of one batch.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.likelihood import last_logits
from steer.models import EVERYWHERE, EditLayer, EditPrompt, EditTensor, Intervention, SteeredModel
from steer.models.batching import PASS_TOKENS, fixed_size, padded, run_passes
from steer.models.hooks import keeping, replaying
from steer.models.interventions import check_rows
from steer.models.positions import Positions
from steer.models.prefix import attention_span, prefix_cache, shared_length
from steer.models.row_steering import join_rows

Setting = Sequence[Intervention]


@dataclass(frozen=True)
class Scored:
    """What a model thinks of a batch of answers, left-padded so that all end at the last column.

    Attributes:
        log_probs: [rows, tokens + 1, vocab], float32: of each answer token, and of what follows.
        plain: The same without steering.
        ids: [rows, tokens]: the answers.
        mask: [rows, tokens], bool: where they are.
    """

    log_probs: Tensor
    plain: Tensor
    ids: Tensor
    mask: Tensor


# Scored -> [rows].
Figure = Callable[[Scored], Tensor]


def log_likelihood(scored: Scored) -> Tensor:
    """Log P of each whole answer, in nats; [rows]."""
    found = scored.log_probs[:, :-1].gather(-1, scored.ids[..., None]).squeeze(-1)
    return found.masked_fill(~scored.mask, 0).sum(-1)


def kl_sum(scored: Scored) -> Tensor:
    """KL(unsteered || steered), summed over what is predicted from the prompt's end on; [rows]."""
    each = (scored.plain.exp() * (scored.plain - scored.log_probs)).sum(-1)
    made = torch.cat([scored.mask, scored.mask.new_ones(len(each), 1)], dim=1)
    return each.masked_fill(~made, 0).sum(-1)


@dataclass(frozen=True)
class _Part:
    """Steerings that begin at one block."""

    lowest: int
    prefixed: bool
    numbers: list[int]


class Sweep:
    """The same answers under many steerings.

    Args:
        model: What is in force on it does not count.
        prompts: Token ids, at least one each.
        answers: As many, at least one token each.
        batch_size: Answers in a pass; `auto` suits the device.
    """

    def __init__(
        self,
        model: SteeredModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        batch_size: int | str = "auto",
    ) -> None:
        self.model, self.batch_size = model, batch_size
        self.rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        self.prompt_lengths = [len(prompt) for prompt in prompts]
        fits = max(map(len, self.rows), default=0) <= attention_span(model)
        self.prefix = shared_length([p[:-1] for p in prompts]) if fits else 0

    @torch.inference_mode()
    def run(self, settings: Sequence[Setting], figure: Figure) -> Tensor:
        """The figure of each answer: [1 + settings, rows], float32; first the unsteered model's.

        Raises:
            ValueError: Steering prompts, which change the text; or steering for several rows.
        """
        edits = [_edits(setting) for setting in settings]
        parts = self._parts(edits)
        caches = [self._prefix_cache([edits[n] for n in part.numbers], part) for part in parts]
        plain_cache = prefix_cache(self.model, self.rows[0][: self.prefix] if self.rows else [])

        def run(rows: list[int]) -> Tensor:
            batch = _Batch(self, rows)
            plain = batch.read_plain(plain_cache, {part.lowest for part in parts})
            # What does nothing has the unsteered figure.
            found = figure(batch.scored(plain, plain)).repeat(1 + len(edits), 1)
            for part, cache in zip(parts, caches, strict=True):
                for chunk in self._chunks(part, rows):
                    chosen = [part.numbers[place] for place in chunk]
                    steered = batch.read(part, [edits[n] for n in chosen], _picked(cache, chunk))
                    for number, values in zip(chosen, steered.split(len(rows)), strict=True):
                        found[1 + number] = figure(batch.scored(values, plain))
            return found

        lengths = [len(row) - self.prefix for row in self.rows]
        total = torch.empty(1 + len(edits), len(self.rows))
        for rows, values in run_passes(lengths, self.batch_size, self.model.device, run):
            total[:, rows] = values
        return total

    def _parts(self, edits: Sequence[list[EditTensor]]) -> list[_Part]:
        found: dict[tuple[int, bool], list[int]] = {}
        for number, setting in enumerate(edits):
            if setting:
                layers = [e.layer for e in setting if isinstance(e, EditLayer)]
                # What only the head's edits change, the last block's output decides.
                lowest = min(layers, default=self.model.depth - 1)
                key = lowest, all(_spares_prefix(e) for e in setting)
                found.setdefault(key, []).append(number)
        return [_Part(*key, numbers) for key, numbers in sorted(found.items())]

    def _prefix_cache(self, edits: list[list[EditTensor]], part: _Part) -> DynamicCache | None:
        """What the rows begin with, a row for each of the steerings."""
        if not self.prefix or not part.prefixed:
            return None
        ids = torch.tensor([self.rows[0][: self.prefix]] * len(edits), device=self.model.device)
        everywhere = [[e for e in setting if e.where == EVERYWHERE] for setting in edits]
        cache = DynamicCache(config=self.model.model.config)
        with self.model.steering(join_rows(everywhere)):
            self.model.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _chunks(self, part: _Part, rows: list[int]) -> list[list[int]]:
        """Places of a part's steerings that share a pass."""
        fixed, count = fixed_size(self.batch_size), len(part.numbers)
        longest = max(len(self.rows[row]) for row in rows) - self.prefix * part.prefixed
        most = PASS_TOKENS.get(self.model.device.type, PASS_TOKENS["cpu"])
        size = max(fixed // len(rows) if fixed else most // (longest * len(rows)), 1)
        return [list(range(n, min(n + size, count))) for n in range(0, count, size)]


class _Batch:
    """Rows that share passes, and what is known of them."""

    def __init__(self, sweep: Sweep, rows: list[int]) -> None:
        self.model, self.prefix = sweep.model, sweep.prefix
        self.rows = [sweep.rows[row] for row in rows]
        self.prompts = [sweep.prompt_lengths[row] for row in rows]
        sizes = [len(row) - n for row, n in zip(self.rows, self.prompts, strict=True)]
        self.longest = max(sizes)
        answers = [row[-size:] for row, size in zip(self.rows, sizes, strict=True)]
        self.ids, mask = padded(answers, 0, "left", self.model.device)
        self.mask = mask.bool()
        self.kept: dict[int, Tensor] = {}

    def read_plain(self, cache: DynamicCache | None, layers: set[int]) -> Tensor:
        """Unsteered log-probabilities; outputs of blocks `layers` are kept."""
        with ExitStack() as stack:
            blocks = self.model.blocks
            outputs = {n: stack.enter_context(keeping(blocks[n])) for n in layers}
            found = self._log_probs(1, cache, self.prefix)
        self.kept = {n: output[0] for n, output in outputs.items() if output}
        return found

    def read(
        self, part: _Part, edits: list[list[EditTensor]], cache: DynamicCache | None
    ) -> Tensor:
        """Log-probabilities under each of `edits`, one after the other; [settings * rows, ...]."""
        count = len(edits)
        steps = edits[0] if count == 1 else join_rows([e for e in edits for _ in self.rows])
        lengths = torch.tensor(self.prompts * count, device=self.model.device)
        with ExitStack() as stack:
            if part.prefixed and part.lowest in self.kept:
                output = self.kept[part.lowest].repeat(count, 1, 1)
                blocks = list(self.model.blocks[: part.lowest + 1])
                stack.enter_context(replaying(blocks, output))
            stack.enter_context(self.model.steering(steps, prompt_lengths=lengths))
            return self._log_probs(count, cache, self.prefix if part.prefixed else 0)

    def _log_probs(self, count: int, cache: DynamicCache | None, prefix: int) -> Tensor:
        own = [row[prefix:] for row in self.rows] * count
        return last_logits(self.model, own, self.longest + 1, cache).float().log_softmax(-1)

    def scored(self, log_probs: Tensor, plain: Tensor) -> Scored:
        """The figures' argument."""
        device = log_probs.device
        return Scored(log_probs, plain.to(device), self.ids.to(device), self.mask.to(device))


def _edits(setting: Setting) -> list[EditTensor]:
    """What does something."""
    if any(isinstance(step, EditPrompt) for step in setting):
        raise ValueError("a sweep is over edits of activations: steering prompts change the text")
    check_rows(setting, 1)
    return [step for step in setting if isinstance(step, EditTensor) and not step.is_idle()]


def _spares_prefix(edit: EditTensor) -> bool:
    """Whether tokens before the prompt's last are all steered, or none."""
    where = edit.where
    return where == EVERYWHERE or (
        isinstance(where, Positions) and where.start is not None and where.start >= -1
    )


def _picked(cache: DynamicCache | None, rows: list[int]) -> DynamicCache | None:
    if cache is None:
        return None
    own = deepcopy(cache)
    own.batch_select_indices(torch.tensor(rows))
    return own
