"""Many requests to one service, side by side; each answer is kept as soon as it is there."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from threading import Event
from typing import Any, TypeVar

from steer.evaluate.kept_answers import KeptAnswers
from steer.progress import progress
from steer.retrying import Unanswered

Request = TypeVar("Request")
log = logging.getLogger(__name__)

# So many requests in a row that time does not mend: the service is down.
GIVE_UP = 20


def ask_all(
    requests: Mapping[str, Request],
    ask: Callable[[Request], Mapping[str, Any]],
    answers: KeptAnswers,
    *,
    threads: int,
    stop: Event,
    what: str,
) -> dict[str, str]:
    """Ask what `answers` does not hold yet, and add it there.

    Args:
        requests: By the key under which the answer is kept.
        ask: Gives one answer; called by many threads.
        answers: Takes the answers.
        threads: At most so many requests at once.
        stop: Set when no more answers are wanted: waits between tries should end then.
        what: For the progress bar.

    Returns:
        Key -> why there is no answer.

    Raises:
        RuntimeError: No other request would be answered either; what was answered is kept.
    """
    left = {key: request for key, request in requests.items() if key not in answers}
    failed: dict[str, str] = {}
    in_a_row = 0
    pool = ThreadPoolExecutor(max(1, min(threads, len(left))))
    try:
        futures = {pool.submit(_keep, key, left[key], ask, answers, stop): key for key in left}
        done = as_completed(futures)
        for future in progress(done, total=len(left), what=what, unit="request"):
            error = _failure(future)
            in_a_row = in_a_row + error.passes if error else 0
            if error is not None:
                failed[futures[future]] = str(error)
                if error.hopeless or in_a_row == GIVE_UP:
                    raise RuntimeError(f"{error}; {_kept(answers)}") from error
    except KeyboardInterrupt:
        log.warning("broken off; waiting for what was asked already; %s", _kept(answers))
        raise
    finally:
        stop.set()
        # What is on its way may have been paid for: it is waited for, and kept.
        pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _keep(
    key: str,
    request: Request,
    ask: Callable[[Request], Mapping[str, Any]],
    answers: KeptAnswers,
    stop: Event,
) -> None:
    if stop.is_set():
        raise Unanswered("not asked")
    try:
        answers.add(key, ask(request))
    except Unanswered as error:
        # At once, and not when the main thread gets to it: hundreds may be asked until then.
        if error.hopeless:
            stop.set()
        raise


def _failure(future: Future[None]) -> Unanswered | None:
    error = future.exception()
    if error is None or isinstance(error, Unanswered):
        return error
    raise error


def _kept(answers: KeptAnswers) -> str:
    if answers.path is None:
        return "nothing was kept: set cache_dir to keep answers"
    return f"what was answered is kept in {answers.path}: run it again to go on"
