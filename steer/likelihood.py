"""Log-probabilities that a model gives to answers, for one steering after another.

What many steerings of the same text share is computed once: the tokens with which all prompts
begin (a system prompt), and the blocks below the first one that is steered.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.models import EVERYWHERE, EditLayer, EditTensor, Intervention, SteeredModel
from steer.models.batching import padded, run_passes
from steer.models.hooks import keeping, replaying
from steer.models.interventions import check_rows, is_per_row, take_rows
from steer.models.prefix import attention_span, prefix_cache, repeated, rows_in, shared_length

REPLAY_BYTES = 2**30


class AnswerScorer:
    """Scores the same answers under any steering.

    Args:
        model: What is in force on it does not count.
        prompts: Token ids, at least one each.
        answers: As many, at least one token each.
        batch_size: Rows in a pass; `auto` suits the device.
        replay_bytes: Most bytes of block outputs that are kept for later steerings.
    """

    def __init__(
        self,
        model: SteeredModel,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        batch_size: int | str = "auto",
        replay_bytes: int = REPLAY_BYTES,
    ) -> None:
        self.model = model
        self.rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        self.prompt_lengths = [len(p) for p in prompts]
        # A row's last prompt token predicts the answer's first: it must stay in the row's own part.
        fits = max(map(len, self.rows), default=0) <= attention_span(model)
        self.prefix = shared_length([p[:-1] for p in prompts]) if fits else 0
        self.batch_size = batch_size
        self.replay_bytes = replay_bytes
        self._kept: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}

    @torch.inference_mode()
    def log_probs(self, interventions: Sequence[Intervention]) -> list[Tensor]:
        """Log P of each answer token given what is before it; float32 [tokens], a tensor a row.

        Args:
            interventions: Per-row ones are for all rows; empty is the untouched model.
        """
        check_rows(interventions, len(self.rows))
        edits = [i for i in interventions if isinstance(i, EditTensor) and not i.is_idle()]
        alike = all(e.where == EVERYWHERE and not is_per_row(e) for e in edits)
        prefix = self.prefix if alike else 0
        with self.model.steering(edits):
            cache = prefix_cache(self.model, self.rows[0][:prefix] if prefix else [])
        # What only the head's edits change, the last block's output decides.
        last = self.model.depth - 1 if edits else self.model.depth
        places = [e.layer for e in edits if isinstance(e, EditLayer)]
        # What gates read is to be computed too.
        lowest = min([*places, *(e.gate.layer for e in edits if e.gate)], default=last)

        def run(rows: list[int]) -> list[Tensor]:
            return self._batch(rows, edits, prefix, cache, lowest)

        lengths = [len(row) - prefix for row in self.rows]
        found: dict[int, Tensor] = {}
        for rows, values in run_passes(lengths, self.batch_size, self.model.device, run):
            found.update(zip(rows, values, strict=True))
        return [found[row] for row in range(len(self.rows))]

    def _batch(
        self,
        rows: list[int],
        edits: list[EditTensor],
        prefix: int,
        cache: DynamicCache | None,
        lowest: int,
    ) -> list[Tensor]:
        own = [self.rows[row][prefix:] for row in rows]
        lengths = [self.prompt_lengths[row] for row in rows]
        sizes = [len(self.rows[row]) - length for row, length in zip(rows, lengths, strict=True)]
        longest = max(sizes)
        key = (lowest, prefix, tuple(rows))
        steps = take_rows(edits, torch.tensor(rows))
        with (
            self._sharing(key),
            self.model.steering(
                steps, prompt_lengths=torch.tensor(lengths, device=self.model.device)
            ),
        ):
            logits = last_logits(self.model, own, longest + 1, cache)
        log_probs = logits[:, :-1].float().log_softmax(dim=-1)
        # Left padding: every answer ends at the right edge.
        ids, _ = padded(own, own[0][-1], "left", log_probs.device)
        chosen = log_probs.gather(-1, ids[:, -longest:, None]).squeeze(-1).cpu()
        return [chosen[n, longest - size :] for n, size in enumerate(sizes)]

    @contextmanager
    def _sharing(self, key: tuple[int, int, tuple[int, ...]]) -> Iterator[None]:
        """Skip the blocks whose output is known; keep that of the first steered one."""
        lowest, depth = key[0], self.model.depth
        known = [k for k in self._kept if k[1:] == key[1:] and k[0] <= lowest]
        with ExitStack() as stack:
            if known:
                deepest = max(known)
                blocks = list(self.model.blocks[: deepest[0] + 1])
                stack.enter_context(replaying(blocks, self._kept[deepest]))
            kept = []
            if key not in self._kept and lowest < depth:
                kept = stack.enter_context(keeping(self.model.blocks[lowest]))
            yield
        used = sum(tensor.nbytes for tensor in self._kept.values())
        if kept and used + kept[0].nbytes <= self.replay_bytes:
            self._kept[key] = kept[0]


@torch.inference_mode()
def last_logits(
    model: SteeredModel,
    rows: Sequence[Sequence[int]],
    keep: int,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Logits [batch, keep, vocab] of the last `keep` columns of left-padded `rows`.

    Args:
        model: Steered by what `steering()` holds open.
        rows: Token ids.
        keep: The head runs on these columns only.
        cache: Of what precedes `rows`, left as it is: one row for all, or for as many rows each as
            there are more of `rows`.
    """
    ids, mask = padded(rows, rows[0][-1], "left", model.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if cache is not None:
        inputs["past_key_values"] = repeated(cache, len(rows) // rows_in(cache))
        mask = torch.cat([mask.new_ones(len(rows), cache.get_seq_length()), mask], dim=1)
    if not bool(mask.all()) or cache is not None:
        positions = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        inputs |= {"attention_mask": mask, "position_ids": positions}
    # Column numbers where they can be: a slice of the hidden states would not be contiguous, and
    # the head three times as slow. accelerate would send them to another device than the head's.
    columns = torch.arange(ids.shape[1] - keep, ids.shape[1], device=ids.device)
    inputs["logits_to_keep"] = keep if model.spread else columns
    accepted = {k: v for k, v in inputs.items() if model.accepts(k)}
    output = cast(Any, model.model)(**accepted, use_cache=cache is not None)
    return output.logits[:, -keep:]


def answer_log_probs(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    interventions: Sequence[Intervention] | None = None,
    batch_size: int | str = "auto",
) -> list[Tensor]:
    """`AnswerScorer` for one steering: what is in force on `model`, or `interventions`."""
    steps = model.interventions() if interventions is None else interventions
    return AnswerScorer(model, prompts, answers, batch_size).log_probs(steps)
