"""Counts kept while steering: how often a hook fired, and how much it changed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from steer.models.positions import for_batch

# Attention sinks (the first token, separators) have some 80 times the usual norm.
SINK_FACTOR = 10.0


@dataclass
class PassNote:
    """Which columns, [batch, seq], the edits of one place steer in one pass.

    Attributes:
        real: Those that hold a token.
        steered: By any edit.
        asked: Those that gates by token were asked about; None where there are none.
        opened: Those that they let pass.
    """

    real: Tensor
    steered: Tensor = field(init=False)
    asked: Tensor | None = None
    opened: Tensor | None = None

    def __post_init__(self) -> None:
        self.steered = torch.zeros_like(self.real)

    def edited(self, asked: Tensor | None, columns: Tensor | None, by_token: bool) -> None:
        """Note one edit of `columns`, out of those `asked`; None is every one."""
        here = self.real if columns is None else columns & self.real
        self.steered = self.steered | here
        if by_token:
            asked = self.real if asked is None else asked
            self.asked = asked if self.asked is None else self.asked | asked
            self.opened = here if self.opened is None else self.opened | here

    def passed(self) -> Tensor | None:
        """1 where a gate by token let one pass, 0 where it did not, NaN where none was asked."""
        if self.asked is None or self.opened is None:
            return None
        return self.opened.float().masked_fill(~self.asked, torch.nan)


@dataclass
class PlaceTally:
    """One place's counts.

    Attributes:
        passes: How often the hook fired.
        residual: [batch, seq] norms before the change, a tensor a pass; NaN where not steered.
        change: The same for the change.
        index: The same shapes: the number of each column's token in its row.
        gated: Whether an edit may decide to change nothing.
        opened: As the norms, what `PassNote.passed` gives.
        rows: [rows] bool, a tensor a batch: which of them gates by row let pass.
    """

    gated: bool = False
    passes: int = 0
    residual: list[Tensor] = field(default_factory=list)
    change: list[Tensor] = field(default_factory=list)
    index: list[Tensor] = field(default_factory=list)
    opened: list[Tensor | None] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)

    def note(
        self,
        before: Tensor,
        after: Tensor,
        steered: Tensor,
        index: Tensor,
        opened: Tensor | None = None,
    ) -> None:
        """Count one pass; `steered` [batch, seq] says which columns to count."""
        self.passes += 1
        self.index.append(index)
        self.opened.append(opened)
        # Kept on the device: reading a number out would make a GPU wait on every token.
        for norms, hidden in ((self.residual, before), (self.change, after - before)):
            norm = torch.linalg.vector_norm(hidden, dim=-1, dtype=torch.float32)
            norms.append(norm.masked_fill(~steered, torch.nan))

    def end_at(self, stops: Tensor) -> None:
        """Forget what came at or behind token number `stops` [rows] of each row."""
        self._forget(lambda index: index >= for_batch(stops.to(index.device), len(index))[:, None])

    def begin_at(self, starts: Tensor) -> None:
        """Forget what came before token number `starts` [rows] of each row."""
        self._forget(lambda index: index < for_batch(starts.to(index.device), len(index))[:, None])

    def _forget(self, which: Callable[[Tensor], Tensor]) -> None:
        for norms in (self.residual, self.change, self.opened):
            for norm, index in zip(norms, self.index, strict=True):
                if norm is not None:
                    norm.masked_fill_(which(index).to(norm.device), torch.nan)

    def first_passes(self, passes: int) -> None:
        """Forget what came behind so many passes."""
        self.passes = min(self.passes, passes)
        for kept in (self.residual, self.change, self.index, self.opened):
            del kept[passes:]

    def add(self, other: "PlaceTally") -> None:
        """Count what `other` counted too."""
        self.passes += other.passes
        self.residual += other.residual
        self.change += other.change
        self.index += other.index
        self.opened += other.opened
        self.rows += other.rows
        self.gated |= other.gated

    def by_row(self) -> list["PlaceTally"]:
        """The counts of each row, without what gates by row decided; none without a pass."""
        if not self.passes:
            return []
        kept = (self.residual, self.change, self.index, self._every_opened())
        rows = zip(*(torch.cat(norms, dim=1).split(1) for norms in kept), strict=True)
        return [PlaceTally(self.gated, self.passes, *([part] for part in row)) for row in rows]

    def _every_opened(self) -> list[Tensor]:
        pairs = zip(self.opened, self.residual, strict=True)
        return [torch.full_like(r, torch.nan) if o is None else o for o, r in pairs]

    def usual_residual(self) -> float:
        """Median norm before the change; 0 where nothing was counted."""
        residual = self._numbers(self.residual)
        return float(residual.median()) if len(residual) else 0.0

    def summary(self) -> dict[str, Any]:
        """Counts and mean |change| / |residual|; sinks count as tokens, not in the mean."""
        residual, change = self._numbers(self.residual), self._numbers(self.change)
        usual = residual <= SINK_FACTOR * residual.median() if len(residual) else residual > 0
        ratio = change[usual] / residual[usual].clamp_min(1e-12)
        return {
            "passes": self.passes,
            "tokens": len(residual),
            "tokens_changed": int((change > 0).sum()),
            "sinks": int((~usual).sum()),
            "dose": float(ratio.mean()) if len(ratio) else 0.0,
            "gated": self.gated,
            **self._gates(),
        }

    def _gates(self) -> dict[str, list[int]]:
        """How many gates let pass, and of how many; nothing of a kind that there is not."""
        tokens = [each for each in self.opened if each is not None]
        rows = [each.float() for each in self.rows]
        kinds = {"gate_rows": self._numbers(rows), "gate_tokens": self._numbers(tokens)}
        return {name: [int(n.sum()), len(n)] for name, n in kinds.items() if len(n)}

    @staticmethod
    def _numbers(norms: list[Tensor]) -> Tensor:
        flat = torch.cat([norm.flatten().cpu() for norm in norms]) if norms else torch.empty(0)
        return flat[~flat.isnan()]


@dataclass
class CountedTally(PlaceTally):
    """One place's counts where a graph kept them: sums, and no value for each token.

    Attributes:
        sums: Tokens, tokens changed, sum of |change| / |residual| over all tokens, sinks included.
    """

    sums: tuple[int, int, float] = (0, 0, 0.0)

    def end_at(self, stops: Tensor) -> None:
        """Nothing: what a graph has counted stays."""

    def add(self, other: PlaceTally) -> None:
        """Count what `other` counted too.

        Raises:
            TypeError: It is not of this kind.
        """
        if not isinstance(other, CountedTally):
            raise TypeError("counts of a graph cannot be added to those of hooks")
        super().add(other)
        tokens, changed, ratio = self.sums
        more = other.sums
        self.sums = (tokens + more[0], changed + more[1], ratio + more[2])

    def since(self, before: "CountedTally") -> "CountedTally":
        """What was counted since this was `before`."""
        (tokens, changed, ratio), (t, c, r) = self.sums, before.sums
        sums = (tokens - t, changed - c, ratio - r)
        return CountedTally(self.gated, self.passes - before.passes, sums=sums)

    def summary(self) -> dict[str, Any]:
        """As for hooks; sinks are not told apart."""
        tokens, changed, ratio = self.sums
        return {
            "passes": self.passes,
            "tokens": tokens,
            "tokens_changed": changed,
            "sinks": 0,
            "dose": ratio / tokens if tokens else 0.0,
            "gated": self.gated,
        }


# By place: a block's number, "head input" or "logits".
Tally = dict[int | str, PlaceTally]


def merge(tally: Tally, more: Tally) -> None:
    """Add the counts of `more` to `tally`."""
    for place, counts in more.items():
        tally.setdefault(place, type(counts)()).add(counts)
