"""Data parallelism: several engines, each with the whole model, share the rows of a run."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Event
from typing import Any, TypeVar

import torch
from torch import Tensor

from steer import processes
from steer.engines.recipes import Recipe
from steer.engines.vllm import VLLMEngine
from steer.models import Answer
from steer.models.slots import Layout
from steer.models.tally import Tally, merge

VISIBLE = "CUDA_VISIBLE_DEVICES"

V = TypeVar("V")
Batch = tuple[list[int], list[Answer]]


class Replicas:
    """Engines that are alike; each row is answered by one of them.

    Args:
        start: Makes one.
        number: Of engines.
        gpus: That each of them takes.

    Raises:
        ValueError: There are fewer.
    """

    def __init__(self, start: Callable[[], VLLMEngine], number: int, gpus: int) -> None:
        self.engines: list[VLLMEngine] = []
        there = _gpus()
        if there and len(there) < number * gpus:
            raise ValueError(
                f"vllm_data_parallel_size: {number} engines of {gpus} GPUs takes {number * gpus}, "
                f"there are {len(there)}: set it lower"
            )
        try:
            for first in range(0, number * gpus, gpus):
                with _seeing(there[first : first + gpus]):
                    self.engines.append(start())
        except BaseException:
            self.close()
            raise

    @property
    def layout(self) -> Layout:
        """What each of them was started with."""
        return self.engines[0].layout

    def fits(self, recipe: Recipe) -> bool:
        """Whether they were started with what `recipe` needs."""
        return self.engines[0].fits(recipe)

    def batches(
        self,
        prompts: Sequence[Sequence[int]],
        params: dict[str, Any],
        recipes: Sequence[Recipe],
        seeds: Sequence[Sequence[int]],
        tally: Tally | None = None,
    ) -> Iterator[Batch]:
        """As `VLLMEngine.batches`."""
        parts = self._parts([len(prompt) for prompt in prompts])
        done: SimpleQueue[Batch | None] = SimpleQueue()
        stopped = Event()

        def answer(engine: VLLMEngine, part: list[int]) -> Tally:
            counts: Tally = {}
            try:
                given = engine.batches(
                    _of(prompts, part), params, _of(recipes, part), _of(seeds, part), counts
                )
                for rows, answers in given:
                    done.put(([part[row] for row in rows], answers))
                    if stopped.is_set():
                        given.close()
            finally:
                done.put(None)
            return counts

        with ThreadPoolExecutor(len(parts)) as pool:
            working = pool.map(answer, self.engines, parts)
            try:
                for _ in parts:
                    yield from iter(done.get, None)
            finally:
                # Who stops early waits for the answer that each engine is at.
                stopped.set()
            for counts in working:
                if tally is not None:
                    merge(tally, counts)

    def log_probs(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        recipe: Recipe = (),
    ) -> list[Tensor]:
        """As `VLLMEngine.log_probs`."""
        parts = self._parts([len(p) + len(a) for p, a in zip(prompts, answers, strict=True)])

        def score(engine: VLLMEngine, part: list[int]) -> dict[int, Tensor]:
            own = engine.log_probs(_of(prompts, part), _of(answers, part), recipe)
            return dict(zip(part, own, strict=True))

        found: dict[int, Tensor] = {}
        with ThreadPoolExecutor(len(parts)) as pool:
            for of_part in pool.map(score, self.engines, parts):
                found |= of_part
        return [found[row] for row in range(len(prompts))]

    def close(self) -> None:
        """End the processes of all."""
        for engine in self.engines:
            engine.close()

    def _parts(self, sizes: Sequence[int]) -> list[list[int]]:
        return processes.shares(sizes, len(self.engines))


def _of(values: Sequence[V], rows: Sequence[int]) -> list[V]:
    return [values[row] for row in rows]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    given, count = os.environ.get(VISIBLE), torch.cuda.device_count()
    # What names none, or one that is not there, hides itself and those behind it.
    return [str(n) for n in range(count)] if given is None else given.split(",")[:count]


@contextmanager
def _seeing(gpus: Sequence[str]) -> Iterator[None]:
    """While open, processes that are started see these GPUs alone."""
    before = os.environ.get(VISIBLE)
    if gpus:
        os.environ[VISIBLE] = ",".join(gpus)
    try:
        yield
    finally:
        if before is not None:
            os.environ[VISIBLE] = before
        else:
            os.environ.pop(VISIBLE, None)
