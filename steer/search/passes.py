"""Many steerings of the same answers: what lies below a steered block is computed once for all.

A batch is read once unsteered, and the output of every block at which some steering begins is kept.
Each steering then goes on from there. Where a pass has room for it, several steerings that begin
at the same block are rows of one batch. A prompt with several answers is read once for them.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.models import EVERYWHERE, EditLayer, EditPrompt, EditTensor, Intervention, SteeredModel
from steer.models.batching import PASS_TOKENS, fixed_size, run_passes
from steer.models.interventions import check_rows
from steer.models.positions import Positions
from steer.models.prefix import attention_span, prefix_cache, shared_length
from steer.models.row_steering import join_rows
from steer.search.batches import Part, Scored, SharedPrompts, WholeRows

# The share of all tokens that shared prompts must save.
WORTHWHILE = 0.35
Setting = Sequence[Intervention]


# Scored -> [rows].
Figure = Callable[[Scored], Tensor]


def log_likelihood(scored: Scored) -> Tensor:
    """Log P of each whole answer, in nats; [rows]."""
    found = scored.log_probs[:, :-1].gather(-1, scored.ids[..., None]).squeeze(-1)
    return found.masked_fill(~scored.mask, 0).sum(-1)


def kl_sum(scored: Scored) -> Tensor:
    """KL(unsteered || steered), summed over what is predicted from the prompt's end on; [rows]."""
    each = (scored.plain.exp() * (scored.plain - scored.log_probs)).sum(-1)
    return each.masked_fill(~scored.made, 0).sum(-1)


class Sweep:
    """The same answers under many steerings.

    Args:
        model: What is in force on it does not count.
        prompts: Token ids, at least one each.
        answers: As many, at least one token each.
        batch_size: Answers in a pass, or prompts that several answers share; `auto` suits the
            device.
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
        self.groups = self._grouped(prompts) if fits else [[n] for n in range(len(self.rows))]
        self.kind = WholeRows if len(self.groups) == len(self.rows) else SharedPrompts

    def _grouped(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """Rows of one prompt together, where that saves enough for a second pass to pay."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, prompt in enumerate(prompts):
            groups.setdefault(tuple(prompt), []).append(number)
        saved = sum((len(rows) - 1) * (len(p) - self.prefix) for p, rows in groups.items())
        tokens = sum(len(row) - self.prefix for row in self.rows)
        pays = saved > WORTHWHILE * tokens
        return list(groups.values()) if pays else [[n] for n in range(len(prompts))]

    @torch.inference_mode()
    def run(self, settings: Sequence[Setting], figure: Figure) -> Tensor:
        """The figure of each answer: [1 + settings, rows], float32; first the unsteered model's.

        Raises:
            ValueError: Steering prompts, which change the text; gates; steering for several rows.
        """
        edits = [_edits(setting) for setting in settings]
        parts = self._parts(edits)
        caches = [self._prefix_cache([edits[n] for n in part.numbers], part) for part in parts]
        plain_cache = prefix_cache(self.model, self.rows[0][: self.prefix] if self.rows else [])

        def run(groups: list[int]) -> Tensor:
            rows = [row for group in groups for row in self.groups[group]]
            texts = [self.rows[row] for row in rows]
            lengths = [self.prompt_lengths[row] for row in rows]
            batch = self.kind(self.model, texts, lengths, self.prefix)
            plain = batch.read_plain(plain_cache, {part.lowest for part in parts})
            # What does nothing has the unsteered figure.
            found = figure(batch.scored(plain, plain)).repeat(1 + len(edits), 1)
            for part, cache in zip(parts, caches, strict=True):
                for chunk in self._chunks(part, groups):
                    chosen = [part.numbers[place] for place in chunk]
                    steered = batch.read(part, [edits[n] for n in chosen], _picked(cache, chunk))
                    for number, values in zip(chosen, steered.split(len(rows)), strict=True):
                        found[1 + number] = figure(batch.scored(values, plain))
            return found

        lengths = [self._tokens(group) for group in range(len(self.groups))]
        total = torch.empty(1 + len(edits), len(self.rows))
        for groups, values in run_passes(lengths, self.batch_size, self.model.device, run):
            total[:, [row for group in groups for row in self.groups[group]]] = values.cpu()
        return total

    def _tokens(self, group: int) -> int:
        """That are read of a group of rows with one prompt, without what all rows begin with."""
        rows = self.groups[group]
        answers = sum(len(self.rows[row]) - self.prompt_lengths[row] for row in rows)
        return self.prompt_lengths[rows[0]] - self.prefix + answers

    def _parts(self, edits: Sequence[list[EditTensor]]) -> list[Part]:
        found: dict[tuple[int, bool], list[int]] = {}
        for number, setting in enumerate(edits):
            if setting:
                layers = [e.layer for e in setting if isinstance(e, EditLayer)]
                # What only the head's edits change, the last block's output decides.
                lowest = min(layers, default=self.model.depth - 1)
                key = lowest, all(_spares_prefix(e) for e in setting)
                found.setdefault(key, []).append(number)
        return [Part(*key, numbers) for key, numbers in sorted(found.items())]

    def _prefix_cache(self, edits: list[list[EditTensor]], part: Part) -> DynamicCache | None:
        """What the rows begin with, a row for each of the steerings."""
        if not self.prefix or not part.prefixed:
            return None
        ids = torch.tensor([self.rows[0][: self.prefix]] * len(edits), device=self.model.device)
        everywhere = [[e for e in setting if e.where == EVERYWHERE] for setting in edits]
        cache = DynamicCache(config=self.model.model.config)
        with self.model.steering(join_rows(everywhere)):
            self.model.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _chunks(self, part: Part, groups: list[int]) -> list[list[int]]:
        """Places of a part's steerings that share a pass over `groups`."""
        fixed, count = fixed_size(self.batch_size), len(part.numbers)
        longest = max(map(self._tokens, groups)) + self.prefix * (not part.prefixed)
        most = PASS_TOKENS.get(self.model.device.type, PASS_TOKENS["cpu"])
        size = max(fixed // len(groups) if fixed else most // (longest * len(groups)), 1)
        return [list(range(n, min(n + size, count))) for n in range(0, count, size)]


def _edits(setting: Setting) -> list[EditTensor]:
    """What does something."""
    if any(isinstance(step, EditPrompt) for step in setting):
        raise ValueError("a sweep is over edits of activations: steering prompts change the text")
    check_rows(setting, 1)
    edits = [step for step in setting if isinstance(step, EditTensor) and not step.is_idle()]
    # A gate reads blocks, and whole prompts, that are computed once for all settings.
    if any(edit.gate for edit in edits):
        raise ValueError(
            "a sweep steers every text: it knows no gates; leave them out, or score with "
            "steer.likelihood.AnswerScorer"
        )
    return edits


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
