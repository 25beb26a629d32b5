"""One run by several processes, which a launcher (torchrun, `accelerate launch`) has started.

The main process runs the program; the others do shares of its work as it hands them out. Files,
random numbers and what is to be done are thus decided once: processes cannot disagree, and work
that is not shared out needs no word about them. What goes to and fro are token ids and sums, so
gloo carries it, whatever device computes.
"""

import heapq
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

J = TypeVar("J")
R = TypeVar("R")

FAILED = "failed"
# A process that ends closes its connections, which the others notice at once; one that works, as
# the main one through a long training, may take as long as it needs.
PATIENCE = timedelta(days=30)
_stores: list[Any] = []


class Stopped(RuntimeError):
    """This process ends early; the main one knows why, and says it."""


def count() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if {"WORLD_SIZE", "RANK"} <= os.environ.keys() else 1


def number() -> int:
    """Which of them this one is, counted from 0, the main one."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def number_here() -> int:
    """Which of those on this machine this one is, counted from 0: it chooses the GPU."""
    return int(os.environ.get("LOCAL_RANK", number())) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that runs the program."""
    return number() == 0


@contextmanager
def together() -> Iterator[None]:
    """While open, the processes share work: the main one calls `share_out`, others `assist`.

    Raises:
        Stopped: Not in the main process: it, or another, failed.
        RuntimeError: In the main process: another failed; the message is its own.
    """
    if count() == 1:
        yield
        return
    # Slow to import, and a run of one process needs none of it.
    import torch.distributed as dist

    # Its functions' defaults are the group there is when it is first imported, as transformers
    # does: they would keep ours, whose threads may then abort the process as it ends.
    import torch.distributed.nn  # noqa: F401

    store, rank, size = next(iter(dist.rendezvous("env://")))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _stores.append(store)
    try:
        yield
        if is_main():
            _hand_out([None] * size)
    except Stopped:
        raise
    except BaseException as error:
        _report(f"process {rank}: {str(error) or type(error).__name__}")
        if is_main() or not isinstance(error, Exception):
            raise
        raise Stopped(str(error)) from error
    finally:
        _stores.clear()
        dist.destroy_process_group()


def shares(sizes: Sequence[int], among: int | None = None) -> list[list[int]]:
    """The numbers of the items that each one does, so that all have about as much to do.

    Args:
        sizes: How much there is to do for each item.
        among: How many share; the processes that share work where None.

    Returns:
        A list for each, in order; an item goes, largest first, to the one that has least.
    """
    among = (count() if _stores else 1) if among is None else among
    loads = [(0, process) for process in range(among)]
    found: list[list[int]] = [[] for _ in loads]
    for item in sorted(range(len(sizes)), key=lambda item: (-sizes[item], item)):
        load, process = heapq.heappop(loads)
        found[process].append(item)
        heapq.heappush(loads, (load + sizes[item], process))
    return [sorted(share) for share in found]


def share_out(jobs: Sequence[J], do: Callable[[J], R]) -> list[R]:
    """`do` of each job, in order; the first is done by this process, the main one.

    Args:
        jobs: One for each process, which others get pickled.
        do: What they have as well (see `assist`).

    Raises:
        RuntimeError: Another process failed; the message is its own.
    """
    if len(jobs) == 1:
        return [do(jobs[0])]
    import torch.distributed as dist

    _hand_out(jobs)
    found: list[Any] = [None] * len(jobs)
    own = do(jobs[0])
    with _breaking_off():
        dist.gather_object(own, found)
    return found


def assist(do: Callable[[Any], Any]) -> None:
    """Do the jobs that the main process hands out, until it closes `together`.

    Raises:
        RuntimeError: Another process failed.
    """
    import torch.distributed as dist

    while True:
        job: list[Any] = [None]
        with _breaking_off():
            dist.scatter_object_list(job, None)
        if job[0] is None:
            return
        done = do(job[0])
        with _breaking_off():
            dist.gather_object(done)


def check() -> None:
    """Raise a RuntimeError where another process has failed: for the middle of long work."""
    if reason := _reported():
        raise RuntimeError(reason) if is_main() else Stopped(reason)


def _report(reason: str) -> None:
    """Say why a process failed, unless one has done so before, which is then the cause."""
    if not _reported():
        _stores[0].set(FAILED, reason)


def _reported() -> str:
    """Why a process has failed, if one has."""
    from torch.distributed import DistError

    try:
        return _stores[0].get(FAILED).decode() if _stores and _stores[0].check([FAILED]) else ""
    except DistError:
        # It lives in the launcher or in the main process.
        return "the main process is no longer there"


def _hand_out(jobs: Sequence[Any]) -> None:
    import torch.distributed as dist

    with _breaking_off():
        dist.scatter_object_list([None], list(jobs))


@contextmanager
def _breaking_off() -> Iterator[None]:
    """Say why an exchange broke off."""
    try:
        yield
    except RuntimeError:
        _report("another process was killed before its work was done")
        check()
        raise
