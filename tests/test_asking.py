"""Asking services: tried again, side by side, kept on disk, broken off."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from steer.evaluate import asking
from steer.evaluate.asking import GIVE_UP, ask_all
from steer.evaluate.kept_answers import KeptAnswers
from steer.retrying import Retries, Unanswered

ROOT = Path(__file__).resolve().parent.parent
KEY = "sk-0123456789abcdef"


class Service:
    """Raises what it is told to, in turn, then answers."""

    def __init__(self, *errors: Unanswered) -> None:
        self.errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "yes"


def busy(status: int = 503, **headers: str) -> Unanswered:
    return Unanswered.by_status(
        "busy", status, {k.replace("_", "-"): v for k, v in headers.items()}
    )


# ---- tried again -------------------------------------------------------------------------------


def test_waits_double_up_to_the_longest_less_at_most_a_half_by_chance():
    waits: list[float] = []
    retries = Retries(tries=6, first=1, longest=5, sleep=waits.append)
    service = Service(*[busy() for _ in range(5)])
    assert retries.run(service) == "yes"
    for wait, full in zip(waits, [1, 2, 4, 5, 5], strict=True):
        assert full / 2 <= wait <= full


def test_the_last_failure_is_raised_when_all_tries_are_used_up():
    service = Service(*[busy() for _ in range(9)])
    with pytest.raises(Unanswered, match="busy"):
        Retries(tries=3, first=0).run(service)
    assert service.tries == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_not_tried_again(status: int):
    service = Service(busy(status))
    with pytest.raises(Unanswered) as raised:
        Retries(first=0).run(service)
    assert service.tries == 1
    assert raised.value.hopeless == (status in (401, 403, 404))


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529])
def test_what_may_pass_is_tried_again(status: int):
    assert Retries(first=0).run(Service(busy(status))) == "yes"


def test_a_service_that_says_how_long_to_wait_is_obeyed():
    waits: list[float] = []
    retries = Retries(tries=4, sleep=waits.append)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    service = Service(busy(429, retry_after="7"), busy(429, retry_after=date), busy(429))
    retries.run(service)
    assert waits[0] == 7
    assert 25 < waits[1] <= 30
    assert 1 <= waits[2] <= 2


@pytest.mark.parametrize("said", ["", "soon", "-3", "nan", "Mon, 32 Foo 2020"])
def test_a_retry_after_that_cannot_be_read_is_passed_over(said: str):
    assert busy(429, retry_after=said).after is None


def test_who_asks_for_an_hour_is_not_waited_for():
    service = Service(busy(429, retry_after="3600"))
    with pytest.raises(Unanswered):
        Retries(sleep=pytest.fail).run(service)


def test_a_wait_that_is_broken_off_is_the_end():
    stop = Event()
    stop.set()
    service = Service(busy())
    with pytest.raises(Unanswered):
        Retries(first=60, sleep=stop.wait).run(service)
    assert service.tries == 1


# ---- kept --------------------------------------------------------------------------------------


def test_what_was_added_is_there_in_the_next_run(tmp_path: Path):
    path = tmp_path / "new" / "answers.jsonl"
    odd = 'two\nlines, "quotes", ünï, \ud800, \u2028'
    with KeptAnswers(path) as answers:
        answers.add("a", {"text": odd})
        assert "a" in answers
    with KeptAnswers(path) as answers:
        assert answers["a"] == {"text": odd}
        assert "b" not in answers


def test_what_was_added_is_in_the_file_before_it_is_closed(tmp_path: Path):
    path = tmp_path / "answers.jsonl"
    with KeptAnswers(path) as answers:
        answers.add("a", {"text": "x"})
        assert json.loads(path.read_text(encoding="utf-8")) == {"key": "a", "answer": {"text": "x"}}


def test_a_line_that_was_cut_off_costs_that_line_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "answers.jsonl"
    with KeptAnswers(path) as answers:
        answers.add("a", {"text": "x"})
        answers.add("b", {"text": "y"})
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING), KeptAnswers(path) as answers:
        assert ("a" in answers, "b" in answers) == (True, False)
        answers.add("c", {"text": "z"})
    assert "answers.jsonl: 1 broken lines are passed over" in caplog.text
    with KeptAnswers(path) as answers:
        assert answers["c"] == {"text": "z"}


def test_runs_at_once_lose_nothing(tmp_path: Path):
    path = tmp_path / "answers.jsonl"

    def run(name: str) -> None:
        with KeptAnswers(path) as answers:
            for number in range(50):
                answers.add(f"{name}{number}", {"text": name * 500})

    threads = [threading.Thread(target=run, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with KeptAnswers(path) as answers:
        assert all(answers[f"{n}{i}"] == {"text": n * 500} for n in "abcd" for i in range(50))


def test_a_key_of_the_environment_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("API_KEY", KEY)
    with KeptAnswers(tmp_path / "answers.jsonl") as answers:
        answers.add("a", {"text": f"your key is {KEY}"})
    assert KEY not in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")


def test_without_a_file_answers_last_as_long_as_the_run():
    with KeptAnswers(None) as answers:
        answers.add("a", {"text": "x"})
        assert answers["a"] == {"text": "x"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=r"cannot write .*answers.jsonl"):
        KeptAnswers(tmp_path / "file" / "answers.jsonl")


# ---- side by side ------------------------------------------------------------------------------


def ask_numbers(ask: Any, answers: KeptAnswers, number: int = 40, threads: int = 4) -> Any:
    requests = {f"k{i}": i for i in range(number)}
    return ask_all(requests, ask, answers, threads=threads, stop=Event(), what="test")


def test_only_what_is_not_kept_is_asked_and_never_by_more_threads_than_allowed():
    asked: list[int] = []
    at_once = threading.Semaphore(4)

    def ask(number: int) -> dict[str, int]:
        assert at_once.acquire(blocking=False)
        asked.append(number)
        at_once.release()
        return {"n": number}

    with KeptAnswers(None) as answers:
        answers.add("k3", {"n": 33})
        assert ask_numbers(ask, answers) == {}
        assert answers["k3"] == {"n": 33}
        assert answers["k39"] == {"n": 39}
    assert sorted(asked) == [n for n in range(40) if n != 3]


def test_requests_run_at_the_same_time():
    together = threading.Barrier(4, timeout=10)  # broken unless four wait at once

    def ask(number: int) -> dict[str, int]:
        return {"n": together.wait()}

    with KeptAnswers(None) as answers:
        ask_numbers(ask, answers, number=8)


def test_what_is_refused_is_told_and_the_others_go_on():
    def ask(number: int) -> dict[str, int]:
        if number % 2:
            raise Unanswered(f"not {number}")
        return {"n": number}

    with KeptAnswers(None) as answers:
        failed = ask_numbers(ask, answers)
    assert failed == {f"k{n}": f"not {n}" for n in range(1, 40, 2)}


def test_what_would_refuse_every_request_ends_the_run(tmp_path: Path):
    asked = Counter[int]()

    def ask(number: int) -> dict[str, int]:
        asked[number] += 1
        raise Unanswered("wrong key", hopeless=True)

    path = tmp_path / "answers.jsonl"
    with (
        KeptAnswers(path) as answers,
        pytest.raises(RuntimeError, match=r"^wrong key; what was answered is kept in .*jsonl: run"),
    ):
        ask_numbers(ask, answers, number=500, threads=4)
    assert len(asked) <= 4


def test_a_service_that_stays_down_ends_the_run():
    def ask(number: int) -> dict[str, int]:
        if number == 5:
            return {}
        raise Unanswered("down", passes=True)

    with (
        KeptAnswers(None) as answers,
        pytest.raises(RuntimeError, match=r"^down; nothing was kept: set cache_dir"),
    ):
        ask_numbers(ask, answers, number=500, threads=1)
    with KeptAnswers(None) as answers:
        assert len(ask_numbers(ask, answers, number=GIVE_UP, threads=1)) == GIVE_UP - 1


def test_a_fault_of_ours_is_not_taken_for_a_refusal():
    def ask(number: int) -> dict[str, int]:
        raise ZeroDivisionError

    with KeptAnswers(None) as answers, pytest.raises(ZeroDivisionError):
        ask_numbers(ask, answers)


def test_breaking_off_keeps_what_is_on_its_way_and_asks_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    begun, go_on, asked = threading.Semaphore(0), Event(), []

    def ask(number: int) -> dict[str, int]:
        asked.append(number)
        begun.release()
        go_on.wait(10)
        return {"n": number}

    def interrupted(futures: Any) -> Any:
        for _ in range(4):
            begun.acquire()
        threading.Timer(0.05, go_on.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(asking, "as_completed", interrupted)
    stop = Event()
    with KeptAnswers(None) as answers, pytest.raises(KeyboardInterrupt):
        ask_all({str(n): n for n in range(40)}, ask, answers, threads=4, stop=stop, what="test")
    assert sorted(asked) == [0, 1, 2, 3]
    assert all(str(n) in answers for n in range(4))
    assert stop.is_set()
    assert "broken off; waiting for what was asked already" in caplog.text


KILLED = """
import os, sys
from threading import Event, Lock
from steer.evaluate.asking import ask_all
from steer.evaluate.kept_answers import KeptAnswers
from pathlib import Path

folder, lock, begun = Path(sys.argv[1]), Lock(), []

def ask(number):
    with lock:
        with (folder / "asked").open("a") as file:
            file.write(f"{number}\\n")
        begun.append(number)
        if len(begun) == 60:
            os._exit(9)
    return {"n": number}

with KeptAnswers(folder / "answers.jsonl") as answers:
    requests = {f"k{n}": n for n in range(100)}
    ask_all(requests, ask, answers, threads=4, stop=Event(), what="test")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_asks_again_only_what_was_on_its_way(tmp_path: Path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 9, done.stderr
    asked = Counter(map(int, (tmp_path / "asked").read_text().split()))
    assert len(asked) == 60

    def ask(number: int) -> dict[str, int]:
        asked[number] += 1
        return {"n": number}

    with KeptAnswers(tmp_path / "answers.jsonl") as answers:
        assert ask_numbers(ask, answers, number=100) == {}
        assert all(answers[f"k{n}"] == {"n": n} for n in range(100))
    assert len(asked) == 100
    assert max(asked.values()) == 2
    assert sum(asked.values()) - 100 <= 4  # as many as there were threads
