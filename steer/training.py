"""Training of a few tensors: batches in a seeded order, Adam, a loss curve, and a way to go on.

What is trained with is not known here: an `Objective` gives loss and gradients.
"""

import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.files import writing
from steer.progress import progress

log = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60
CHECKPOINT = "unfinished.ckpt"

# Parameters by name and the numbers of a step's examples -> loss, its gradient in each parameter,
# and how many tokens were scored.
Objective = Callable[[Mapping[str, Tensor], Sequence[int]], tuple[float, list[Tensor], int]]


def batches(
    examples: int, size: int, steps: int | None, generator: torch.Generator
) -> list[list[int]]:
    """The numbers of each step's examples; every epoch is in a new order.

    Args:
        examples: How many there are.
        size: Of a step; an epoch's last may be smaller.
        steps: How many; one epoch where None.
        generator: Of the orders.
    """
    found: list[list[int]] = []
    while not found or len(found) < (steps or 0):
        order = torch.randperm(examples, generator=generator).tolist()
        found += [order[n : n + size] for n in range(0, examples, size)]
    return found[:steps]


@dataclass
class RunningMean:
    """A mean that forgets: each older value weighs `gamma` times the one after it."""

    gamma: float
    value: float = 0.0
    count: int = 0

    def add(self, value: float) -> float:
        """The mean with one more value."""
        old = self.gamma * (1 - self.gamma**self.count)
        new = 1 - self.gamma
        self.value = (old * self.value + new * value) / (old + new)
        self.count += 1
        return self.value


@dataclass
class Checkpoint:
    """What an unfinished training leaves behind.

    Attributes:
        folder: Where; None where nothing is to be left.
        recipe: All that decides the result; what another recipe left is not gone on with.
    """

    folder: Path | None
    recipe: str
    saved: float = field(default_factory=time.monotonic)

    def load(self) -> dict[str, Any] | None:
        """What was left, if anything of this recipe."""
        if self.folder is None or not (path := self.folder / CHECKPOINT).is_file():
            return None
        found = torch.load(path, map_location="cpu", weights_only=True)
        if found["recipe"] == self.recipe:
            return found["state"]
        log.warning("%s is of other data or settings: training begins anew", path)
        return None

    def save(self, state: Mapping[str, Any]) -> None:
        """Leave `state`, in place of what was left before."""
        self.saved = time.monotonic()
        if self.folder is not None:
            buffer = io.BytesIO()
            torch.save({"recipe": self.recipe, "state": dict(state)}, buffer)
            with writing(self.folder / CHECKPOINT, "wb") as file:
                file.write(buffer.getvalue())

    def is_due(self) -> bool:
        """Whether the last one is long ago."""
        return time.monotonic() - self.saved >= CHECKPOINT_SECONDS

    def remove(self) -> None:
        """Leave nothing."""
        if self.folder is not None:
            (self.folder / CHECKPOINT).unlink(missing_ok=True)


class Training:
    """Adam on `params`, one batch after another.

    Args:
        params: By name; changed in place.
        lr: Learning rate.
        gamma: Of the running mean that the curve shows.
        log_step: A point of the curve every so many steps.
    """

    def __init__(self, params: dict[str, Tensor], lr: float, gamma: float, log_step: int) -> None:
        self.params = {name: p.requires_grad_() for name, p in params.items()}
        self.optimizer = torch.optim.Adam(list(self.params.values()), lr=lr)
        self.lr, self.log_step = lr, log_step
        self.mean = RunningMean(gamma)
        self.curve: list[list[float]] = []
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._updating = False

    def run(
        self, order: Sequence[Sequence[int]], objective: Objective, checkpoint: Checkpoint
    ) -> None:
        """Do the steps of `order` that are still to be done.

        Raises:
            ValueError: A loss or gradient is not finite; nothing is left behind.
        """
        with progress(total=len(order), done=self.step, what="training", unit="step") as bar:
            try:
                for numbers in order[self.step :]:
                    self._advance(numbers, objective)
                    bar.set_postfix(loss=f"{self.mean.value:.3f}", refresh=False)
                    bar.update()
                    if checkpoint.is_due():
                        checkpoint.save(self.state())
            except KeyboardInterrupt:
                # In the middle of an update, the checkpoint before it is the one to go on from.
                if checkpoint.folder is not None and not self._updating:
                    checkpoint.save(self.state())
                    log.warning("stopped at step %d: resume: true goes on from there", self.step)
                raise
            except ValueError:
                checkpoint.remove()
                raise
        checkpoint.remove()

    def _advance(self, numbers: Sequence[int], objective: Objective) -> None:
        began = time.perf_counter()
        loss, grads, tokens = objective(self.params, numbers)
        if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in grads):
            raise ValueError(
                f"training broke down at step {self.step + 1}: the loss is {loss}, or its gradient "
                f"is not finite: lower lr (it is {self.lr})"
            )
        self._updating = True
        for parameter, grad in zip(self.params.values(), grads, strict=True):
            parameter.grad = grad
        self.optimizer.step()
        self.mean.add(loss)
        self.step, self.tokens = self.step + 1, self.tokens + tokens
        if self.step % self.log_step == 0:
            self.curve.append([self.step, self.mean.value])
        self.seconds += time.perf_counter() - began
        self._updating = False

    def state(self) -> dict[str, Any]:
        """All that a training like this one needs to go on."""
        return {
            "params": {name: p.detach() for name, p in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
            "mean": [self.mean.value, self.mean.count],
            "curve": self.curve,
            "done": [self.step, self.tokens, self.seconds],
        }

    def report(self) -> dict[str, Any]:
        """What was done, JSON-like: the curve of the running mean, at its steps, and counts."""
        last = [[self.step, self.mean.value]] if self.step % self.log_step else []
        return {
            "loss": [*self.curve, *last],
            "steps": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        with torch.no_grad():
            for name, parameter in self.params.items():
                parameter.copy_(state["params"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.mean.value, self.mean.count = state["mean"]
        self.curve = state["curve"]
        self.step, self.tokens, self.seconds = state["done"]
