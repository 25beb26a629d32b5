"""A run killed at any moment leaves whole files, and `resume` ends where an unbroken run ends."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from desk import ROOT, Desk

import steer
from steer.journal import Journal
from steer.models import SteeredModel
from steer.results import partial_path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="runs are killed in a fork, which torch bears"
    ),
    # Of newer Pythons: a worker of xdist has a thread for its messages, which no fork needs.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

ROWS = [
    {"question": f"Number {n}?", "matching": f"Good {n}.", "not_matching": f"Bad {n}."}
    for n in range(6)
]
INPUTS = [{"input": f"Tell me of {n}" + "." * (n % 7)} for n in range(6)]
GENERATE = "alg_name: caa\nlayers: [0, 1, 2]\n"
APPLY = "alg_name: caa\nlayers: [1]\nmultipliers: [2.0]\n"
MOMENTS = random.Random(0)


class Bench:
    """The same two runs again and again, each time in a folder that is asked for.

    Attributes:
        model: Loaded once; a killed run is a fork of this process.
    """

    def __init__(self, folder: Path, model: SteeredModel):
        self.folder, self.model = folder, model
        (folder / "generate.yaml").write_text(GENERATE)
        (folder / "apply.yaml").write_text(APPLY)

    def config(self, place: str, **more: Any) -> dict[str, Any]:
        return {
            "steer_train_hparam_paths": str(self.folder / "generate.yaml"),
            "steer_vector_output_dirs": str(self.folder / place / "vectors"),
            "apply_steer_hparam_paths": str(self.folder / "apply.yaml"),
            "generation_output_dir": str(self.folder / place / "answers"),
            "generation_params": {"max_new_tokens": 5, "do_sample": True},
            "generate_orig_output": True,
            "num_responses": 2,
            "batch_size": 4,
            **more,
        }

    def generate(self, place: str, **more: Any) -> dict[str, torch.Tensor]:
        generator = steer.BaseVectorGenerator(self.config(place, **more), self.model)
        return generator.generate_vectors({"mine": ROWS})["mine"]["caa"]

    def apply(self, place: str, **more: Any) -> steer.BaseVectorApplier:
        # Where results go is not part of what decides them, but of what is compared.
        applier = steer.BaseVectorApplier(self.config("same", **more), self.model)
        applier.settings.generation_output_dir = self.config(place)["generation_output_dir"]
        applier.apply_vectors({"caa": {"layer_1": torch.linspace(-1, 1, 16)}})
        applier.generate({"mine": INPUTS})
        return applier

    def vectors(self, place: str) -> dict[str, Any]:
        """What a finished run that makes vectors left."""
        folder = self.folder / place / "vectors/mine/caa_vector"
        metadata = json.loads((folder / "metadata.json").read_text())
        return {"metadata": metadata} | {p.name: p.read_bytes() for p in folder.glob("*.pt")}

    def answers(self, place: str) -> list[dict[str, Any]]:
        """What a finished run that answers left."""
        folder = self.folder / place / "answers"
        assert {p.name for p in folder.glob("[!.]*")} == {"mine_results.json", "mine_run.json"}
        return json.loads((folder / "mine_results.json").read_text())


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    source = steer.ModelSource(model_name_or_path=str(tiny_folder), device="cpu", dtype="float32")
    return Bench(tmp_path_factory.mktemp("bench"), source.load())


def killed(do: Callable[[], Any], after: float) -> bool:
    """Start `do` in another process and kill it `after` seconds; whether it was killed."""
    pid = os.fork()
    if not pid:
        with_status(do)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def killed_at_event(do: Callable[[], Any], number: int) -> bool:
    """Start `do` in another process that kills itself before its disk event of that number."""
    pid = os.fork()
    if not pid:
        left = iter(range(number))

        def dying(call: Callable[..., Any]) -> Callable[..., Any]:
            def instead(*arguments: Any, **more: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **more)

            return instead

        for home, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
            setattr(home, name, dying(getattr(home, name)))
        with_status(do)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def with_status(do: Callable[[], Any]) -> None:
    """End this process, which is a fork of the tests', after `do`."""
    status = 1
    try:
        do()
        status = 0
    finally:
        os._exit(status)


def events() -> Iterator[int]:
    return iter(range(200))


def check_whole(folder: Path) -> None:
    """Raise where a file that a later run would read is torn."""
    for path in folder.rglob("[!.]*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.rglob("[!.]*.pt"):
        assert torch.load(path, weights_only=True).shape == (16,)


# ---- kill -9 -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_vectors_killed_at_every_write_are_made_by_the_next_run(bench: Bench):
    bench.generate("whole")
    for number in events():
        place = f"write{number}"
        alive = not killed_at_event(lambda place=place: bench.generate(place), number)
        check_whole(bench.folder / place)
        bench.generate(place, resume=True)
        assert bench.vectors(place) == bench.vectors("whole")
        if alive:
            break
    assert number > 6


@pytest.mark.slow
def test_vectors_killed_while_they_replace_others_are_made_by_the_next_run(bench: Bench):
    bench.generate("whole")
    bench.generate("older", seed=7)
    for number in events():
        place = f"again{number}"
        shutil.copytree(bench.folder / "older", bench.folder / place)
        alive = not killed_at_event(lambda place=place: bench.generate(place), number)
        check_whole(bench.folder / place)
        bench.generate(place, resume=True)
        assert bench.vectors(place) == bench.vectors("whole")
        if alive:
            break
    assert number > 6


@pytest.mark.slow
def test_answers_killed_at_every_write_are_finished_by_the_next_run(bench: Bench):
    bench.apply("whole")
    for number in events():
        place = f"answer{number}"
        alive = not killed_at_event(lambda place=place: bench.apply(place), number)
        check_whole(bench.folder / place)
        bench.apply(place, resume=True)
        assert bench.answers(place) == bench.answers("whole")
        if alive:
            break
    assert number > 8


@pytest.mark.parametrize(
    "run, left", [(Bench.generate, Bench.vectors), (Bench.apply, Bench.answers)]
)
def test_a_run_killed_at_five_moments_ends_like_an_unbroken_one(
    bench: Bench, run: Callable[..., Any], left: Callable[..., Any]
):
    start = time.perf_counter()
    run(bench, f"unbroken-{run.__name__}")
    lasts = time.perf_counter() - start
    kills = 0
    for _ in range(5):
        moment = MOMENTS.uniform(0.02, 0.6) * lasts
        kills += killed(lambda: run(bench, f"killed-{run.__name__}", resume=True), moment)
        check_whole(bench.folder / f"killed-{run.__name__}")
    assert kills
    run(bench, f"killed-{run.__name__}", resume=True)
    assert left(bench, f"killed-{run.__name__}") == left(bench, f"unbroken-{run.__name__}")


# ---- going on ----------------------------------------------------------------------------------


@pytest.fixture
def broken_off(bench: Bench, request: pytest.FixtureRequest) -> str:
    """A place with the answers of a run that was killed after some batches."""
    place = request.node.name
    assert killed_at_event(lambda: bench.apply(place), 5)
    assert (bench.folder / place / "answers/mine_partial.jsonl").is_file()
    return place


def test_what_was_answered_is_not_answered_again(bench: Bench, broken_off: str, monkeypatch):
    bench.apply("whole")
    partial = bench.folder / broken_off / "answers/mine_partial.jsonl"
    kept = sum(len(json.loads(line)) for line in partial.read_text().splitlines()[1:])
    counted: list[int] = []
    real = steer.models.generate_batches

    def counting(model: Any, prompts: list[Any], *rest: Any, **more: Any) -> Any:
        counted.append(len(prompts))
        return real(model, prompts, *rest, **more)

    monkeypatch.setattr("steer.answering.generate_batches", counting)
    applier = bench.apply(broken_off, resume=True)
    assert 0 < kept == 6 * 3 - sum(counted)
    assert (
        applier.reports["mine"].why_not["layers"]
        == f"{kept} answers of the killed run are not counted"
    )
    assert bench.answers(broken_off) == bench.answers("whole")


def test_a_torn_last_line_is_answered_again(bench: Bench, broken_off: str):
    bench.apply("whole")
    partial = bench.folder / broken_off / "answers/mine_partial.jsonl"
    partial.write_bytes(partial.read_bytes()[:-4])
    bench.apply(broken_off, resume=True)
    assert bench.answers(broken_off) == bench.answers("whole")


@pytest.mark.parametrize(
    "more, said",
    [
        ({"seed": 3}, r"settings.seed: 42 then, 3 now"),
        ({"multipliers": [1.0]}, r"settings.methods.caa.multipliers: \[2.0\] then, \[1.0\] now"),
        (
            {"generation_params": {"max_new_tokens": 6, "do_sample": True}},
            r"generation_params.max_new_tokens: 5 then, 6 now",
        ),
    ],
    ids=["seed", "multipliers", "params"],
)
def test_a_changed_setting_is_refused_and_what_is_there_stays(
    bench: Bench, broken_off: str, more: dict[str, Any], said: str
):
    partial = bench.folder / broken_off / "answers/mine_partial.jsonl"
    before = partial.read_bytes()
    with pytest.raises(ValueError, match=rf"cannot resume: .*mine_partial.jsonl .*\({said}\)"):
        bench.apply(broken_off, resume=True, **more)
    assert partial.read_bytes() == before


@pytest.mark.parametrize("more", [{"batch_size": 1}, {"report": "off"}], ids=["batch", "report"])
def test_a_setting_without_influence_may_change(
    bench: Bench, broken_off: str, more: dict[str, Any]
):
    bench.apply(broken_off, resume=True, **more)
    assert len(bench.answers(broken_off)) == len(INPUTS)


def test_without_resume_all_is_done_anew(bench: Bench, broken_off: str):
    applier = bench.apply(broken_off, seed=3)
    assert "layers" not in applier.reports["mine"].why_not
    assert bench.answers(broken_off) != bench.answers("whole")


def test_a_finished_run_is_not_repeated(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    made, first = bench.generate("done"), bench.apply("done")
    monkeypatch.setattr(bench.model.model, "forward", None)
    again = bench.generate("done", resume=True)
    assert {name: v.tolist() for name, v in again.items()} == {
        n: v.tolist() for n, v in made.items()
    }
    assert bench.apply("done", resume=True).reports == first.reports


def test_a_run_of_other_settings_in_the_same_folder_says_what_it_replaces(
    bench: Bench, caplog: pytest.LogCaptureFixture
):
    bench.apply("twice")
    bench.apply("twice")
    assert "replaced" not in caplog.text
    bench.apply("twice", num_responses=1)
    said = "mine_results.json of another run (settings.num_responses: 2 then, 1 now) will be"
    assert said in caplog.text


def test_nobody_else_may_answer_there_until_the_results_are_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    save, refused = steer.applier.save_results, []

    def noting(path: Path, *given: Any) -> None:
        with pytest.raises(OSError, match=r"another run is at work in .*alone/answers"):
            Journal(partial_path(path), {}, resume=False)
        refused.append(path)
        save(path, *given)

    monkeypatch.setattr("steer.applier.save_results", noting)
    bench.apply("alone")
    assert len(refused) == 1
    written = {path.name for path in (bench.folder / "alone/answers").iterdir()}
    assert written == {"mine_results.json", "mine_run.json"}


def test_vectors_of_other_settings_are_made_anew(bench: Bench):
    bench.generate("other", layers=[1])
    assert set(bench.generate("other", resume=True)) == {"layer_0", "layer_1", "layer_2"}


@pytest.mark.slow
def test_the_script_killed_in_the_middle_goes_on(desk: Desk):
    desk.rows("test.jsonl", [{"input": f"Tell me of {n}."} for n in range(200)])
    desk.run("vectors_generate.py")
    slow = {"batch_size": 1, "generation_params__max_new_tokens": 20}
    command = [sys.executable, str(ROOT / "vectors_apply.py"), *desk.overrides(**slow)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command, cwd=desk.folder, env=environment, stderr=subprocess.DEVNULL)
    partial = desk.out / "answers/mine_partial.jsonl"
    deadline = time.monotonic() + 120
    while not (partial.is_file() and partial.read_bytes().count(b"\n") > 5):
        assert run.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.kill()
    run.wait()
    assert not (desk.out / "answers/mine_results.json").exists()
    desk.run("vectors_apply.py", resume="true", **slow)
    assert desk.status == 0, desk.said
    resumed = desk.answers()
    desk.run("vectors_apply.py", **slow)
    assert desk.answers() == resumed
