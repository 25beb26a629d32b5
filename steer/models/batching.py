"""Work in batches of rows of similar length, smaller ones when memory runs out."""

import gc
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from accelerate.utils.memory import should_reduce_batch_size

R = TypeVar("R")
log = logging.getLogger(__name__)

# Most tokens of a pass, padding included, where batch_size is auto. More gains nothing: on a CPU
# caches are full, on a GPU the matrix units are.
PASS_TOKENS = {"cuda": 16384, "cpu": 1024}


def fixed_size(batch_size: int | str) -> int | None:
    """Rows in a batch as somebody fixed them; None for `auto`.

    Raises:
        ValueError: Neither `auto` nor a whole number above 0.
    """
    if batch_size == "auto":
        return None
    if str(batch_size).isdecimal() and int(batch_size):
        return int(batch_size)
    raise ValueError(f"batch_size must be auto or 1 and more: got {batch_size!r}")


def run_batches(
    lengths: Sequence[int],
    size: int,
    run: Callable[[list[int]], R],
    *,
    max_tokens: int | None = None,
    fixed: bool = False,
) -> Iterator[tuple[list[int], R]]:
    """Yield `(rows, run(rows))` until every row is done, longest rows first.

    Which rows share a batch depends on `lengths`, `size` and `max_tokens` alone.

    Args:
        lengths: Tokens of each row.
        size: Most rows in a batch.
        run: Does one batch, given the numbers of its rows.
        max_tokens: Most tokens in a batch, padding included; one row may be longer.
        fixed: Whether running out of memory is an error; else the size is halved, with a warning.
    """
    left = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    while left:
        fitting = size if max_tokens is None else min(size, max_tokens // max(lengths[left[0]], 1))
        rows = left[: max(fitting, 1)]
        try:
            result = run(rows)
        except RuntimeError as error:
            if fixed or len(rows) == 1 or not out_of_memory(error):
                raise
            size = len(rows) // 2
            log.warning("out of memory with %d rows in a batch: going on with %d", len(rows), size)
        else:
            left = left[len(rows) :]
            yield rows, result
            continue
        free_memory()


def run_passes(
    lengths: Sequence[int],
    batch_size: int | str,
    device: torch.device,
    run: Callable[[list[int]], R],
) -> Iterator[tuple[list[int], R]]:
    """`run_batches` for forward passes over rows of known text.

    Args:
        lengths: As there.
        batch_size: Rows in a pass; `auto` suits the device.
        device: The one that computes.
        run: As there.
    """
    size = fixed_size(batch_size)
    if size is not None:
        return run_batches(lengths, size, run, fixed=True)
    limit = PASS_TOKENS.get(device.type, PASS_TOKENS["cpu"])
    return run_batches(lengths, len(lengths), run, max_tokens=limit)


def free_memory() -> None:
    """Give back what a failed pass held; outside of `except`, where no traceback holds it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def padded(
    rows: Sequence[Sequence[int]], fill: int, side: str, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both [batch, seq], padded on `side` ("left" or "right")."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), fill, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids.to(device), mask.to(device)
