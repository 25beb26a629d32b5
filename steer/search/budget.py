"""What a search may cost, in minutes or in tokens."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from steer.models import SteeredModel
from steer.models.hooks import watch_arguments


class Budget:
    """Minutes, or tokens that the model reads; with tokens a search is the same on any machine.

    Args:
        minutes: As above; of this run and those that it goes on from.
        tokens: Counts instead of minutes where given: each column of each pass, padding too, and
            also of passes that skip blocks or stop early.
        spent: By earlier runs that this one goes on from.

    Attributes:
        total: Seconds or tokens.
        unit: Which of the two.
        phases: What each part of the work took, in this run.
    """

    def __init__(self, minutes: float, tokens: int | None = None, spent: float = 0.0) -> None:
        self.total = float(tokens) if tokens else 60.0 * minutes
        self.unit = "tokens" if tokens else "seconds"
        self.phases: dict[str, float] = {}
        self._before, self._began, self._tokens = spent, time.monotonic(), 0

    @property
    def spent(self) -> float:
        """Seconds or tokens so far."""
        own = self._tokens if self.unit == "tokens" else time.monotonic() - self._began
        return self._before + own

    def left(self, share: float = 1.0) -> float:
        """What is left of the first `share` of it; 0 where that is spent."""
        return max(share * self.total - self.spent, 0.0)

    def note(self, phase: str) -> None:
        """What was spent since the last note was spent on `phase`."""
        before = self._before + sum(self.phases.values())
        self.phases[phase] = self.phases.get(phase, 0.0) + self.spent - before

    @contextmanager
    def counting(self, model: SteeredModel) -> Iterator[None]:
        """Count what `model` reads while open."""

        def see(arguments: Mapping[str, Any]) -> None:
            given = arguments.get("input_ids")
            shape = (arguments["inputs_embeds"] if given is None else given).shape
            self._tokens += shape[0] * shape[1]

        with watch_arguments(model.decoder, see):
            yield
