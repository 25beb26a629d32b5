"""Gates: whether an edit acts, decided by what a block's output lies along.

After Lee et al. (2024), "Programming Refusal with Conditional Activation Steering", sec. 3.2,
https://arxiv.org/abs/2409.05907: steer where the cosine to a condition vector is above a threshold.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steer.models.positions import NOWHERE, Pass, Positions, TokenMask, Where, for_batch

if TYPE_CHECKING:
    from steer.models.interventions import Intervention

ROW, TOKEN = "row", "token"


@dataclass(frozen=True, eq=False)
class Gate:
    """Lets an edit act where scores are above a threshold.

    A token's score is the cosine of the output of block `layer` and `direction`; a row's is the
    mean over its prompt's tokens, which no token's norm sways (an attention sink has 80 times the
    usual one).

    Attributes:
        layer: Decoder block, counted from 0, whose own output is read, before edits there.
        direction: [d_model], of any length.
        threshold: Between -1 and 1.
        by: `row`, decided once on the prompt, for prompt and answer; or `token`, each for itself.
    """

    layer: int
    direction: Tensor
    threshold: float
    by: str = ROW

    def __post_init__(self) -> None:
        if self.by not in (ROW, TOKEN) or self.direction.ndim != 1:
            raise ValueError(
                f"a gate is by {ROW} or {TOKEN}, along one direction [d_model]: got {self.by!r} "
                f"and {list(self.direction.shape)}"
            )


def cosines(hidden: Tensor, direction: Tensor) -> Tensor:
    """Scores [...] of tokens [..., d_model], in float32; 0 where a token, or `direction`, is 0."""
    towards = direction.to(hidden.device, torch.float32)
    return torch.nn.functional.cosine_similarity(hidden.float(), towards, dim=-1)


class Decisions:
    """What gates decide in the passes of one `steering()`.

    Attributes:
        rows: Gate by row -> [batch], bool.
    """

    def __init__(self, now: Pass) -> None:
        self.rows: dict[Gate, Tensor] = {}
        self._now = now
        self._tokens: dict[Gate, Tensor] = {}
        self._new: set[Gate] = set()
        self._directions: dict[tuple[Gate, torch.device], Tensor] = {}

    def read(self, gate: Gate, hidden: Tensor) -> None:
        """Decide by `hidden` [batch, seq, d_model], the output of the gate's block.

        Raises:
            ValueError: The gate is by row, and the first pass does not hold the whole prompt.
        """
        key = (gate, hidden.device)
        if key not in self._directions:
            self._directions[key] = gate.direction.to(hidden.device, torch.float32)
        scores = cosines(hidden, self._directions[key])
        self._new.discard(gate)
        if gate.by == TOKEN:
            self._tokens[gate] = scores > gate.threshold
        elif hidden.shape[1] > 1 or gate not in self.rows:
            self._decide(gate, scores)

    def _decide(self, gate: Gate, scores: Tensor) -> None:
        index = self._now.numbers(scores)
        lengths = self._now.prompt_lengths
        if lengths is None:
            raise ValueError(
                "a gate by row is decided on the prompt and needs `prompt_lengths`: give them to "
                "`steering(prompt_lengths=...)`, or use `generate`"
            )
        lengths = for_batch(lengths.to(scores.device), len(index))[:, None]
        prompt = (index >= 0) & (index < lengths)
        begins = (prompt & (index == 0)).any(1)
        opened = scores.masked_fill(~prompt, 0).sum(1) / prompt.sum(1) > gate.threshold
        before = self.rows.get(gate)
        if before is None or len(before) != len(opened):
            if not bool((begins & (prompt & (index == lengths - 1)).any(1)).all()):
                raise ValueError(
                    "a gate by row is decided on the prompt, and this pass does not hold the whole "
                    "of it: read it in one pass, without a cache of its beginning"
                )
            before = opened
            self._new.add(gate)
        self.rows[gate] = torch.where(begins, opened, before)

    def within(self, columns: Tensor | None, gate: Gate | None, hidden: Tensor) -> Tensor | None:
        """Those of `columns` [batch, seq] of `hidden` that `gate` lets pass; None for every one."""
        if gate is None:
            return columns
        if gate.by == TOKEN:
            # The head may be given the last columns of a pass only.
            opened = self._tokens[gate][:, -hidden.shape[1] :].to(hidden.device)
        else:
            opened = self.rows[gate].to(hidden.device)[:, None].expand(hidden.shape[:2])
        return opened if columns is None else columns & opened

    def new_rows(self, gate: Gate, where: Where) -> list[Tensor]:
        """What `gate` has decided of rows in this pass: a tensor [rows], or none.

        Rows that `where` steers nowhere are left out, and beams of one row count once.
        """
        if gate not in self._new:
            return []
        opened = self.rows[gate]
        lengths = self._now.prompt_lengths
        assert lengths is not None
        opened = opened[:: max(len(opened) // len(lengths), 1)]
        if isinstance(where, Positions | TokenMask):
            return [opened]
        asked = torch.tensor([one != NOWHERE for one in where], device=opened.device)
        return [opened[asked.expand(len(opened))]]


def settled(
    interventions: "Sequence[Intervention]", decisions: Decisions, row: int
) -> "list[Intervention]":
    """A row's interventions once its prompt was read: its gates by row are no more.

    Args:
        interventions: The row's own.
        decisions: Those of the batch in which the prompt was read.
        row: Its number in that batch.
    """
    left: list[Intervention] = []
    for one in interventions:
        gate = getattr(one, "gate", None)
        if gate is None or gate not in decisions.rows:
            left.append(one)
        elif bool(decisions.rows[gate][row]):
            left.append(replace(one, gate=None))  # type: ignore[call-arg]
    return left
