"""Several processes of a launcher make the vectors of one, and end together when one fails."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from desk import ROOT, Desk, pair
from sae_files import sae_lens

from steer import processes
from steer.models import load
from steer.models.load import ModelSource, choose_device

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
ACCELERATE += ["--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no"]
METHODS = ["caa", "pca", "probe", "ablate", "lm_steer"]
HOOK = {"hook_name": "blocks.1.hook_resid_post", "model_name": "tiny"}
SMALL = "alg_name: lm_steer\nn_steps: 3\nrank: 2\n"


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a launcher had started this process as the second of three."""
    for name, value in {"WORLD_SIZE": "3", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def test_one_process_has_all_to_do_and_needs_no_other():
    with processes.together():
        assert processes.shares([3, 1, 2]) == [[0, 1, 2]]
        assert processes.share_out([7], lambda job: job + 1) == [8]
        processes.check()


@pytest.mark.usefixtures("second")
def test_shares_are_even_and_the_same_wherever_they_are_made(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(processes, "_stores", [None])
    # 7 | 6 | 5, then 4 joins the 5, 3 the 6, and 2 the 7: 9 each.
    assert processes.shares([2, 7, 3, 6, 4, 5]) == [[0, 1], [2, 3], [4, 5]]
    assert processes.shares([5]) == [[0], [], []]


@pytest.mark.usefixtures("second")
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(load.torch.cuda, "device_count", lambda: 4)
    assert str(choose_device("auto")) == str(choose_device("cuda")) == "cuda:1"
    assert str(choose_device("cuda:3")) == "cuda:3"
    monkeypatch.setattr(load.torch.cuda, "device_count", lambda: 1)
    assert str(choose_device("auto")) == "cuda:0"
    assert str(choose_device("cpu")) == "cpu"


@pytest.mark.usefixtures("second")
def test_a_model_over_several_devices_is_not_loaded_by_several_processes():
    with pytest.raises(ValueError, match=r"each of the 3 processes .* leave device_map out"):
        ModelSource(device="cpu", device_map="auto")


# ---- processes of their own ----


@dataclass
class Ended:
    """How a process ended."""

    status: int
    printed: str
    said: str


class Crew:
    """Runs scripts as several processes in a working directory of its own."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        known = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self.environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"} | known

    def launched(self, launcher: Sequence[str], out: str, **more: Any) -> Ended:
        """`vectors_generate.py` under a launcher, or alone; vectors go to the folder `out`."""
        more = {"steer_vector_output_dirs": out, **more}
        script = str(ROOT / "vectors_generate.py")
        command = [*(launcher or [sys.executable]), script, "-v", *self.desk.overrides(**more)]
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def start(
        self, script: str, faults: dict[int, str], **more: Any
    ) -> list[subprocess.Popen[str]]:
        """The two processes of a run, each after a piece of Python of its own: no launcher's."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        known = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        started = []
        for rank in range(2):
            code = f"{faults.get(rank, '')}\nimport runpy\nrunpy.run_path({script!r}, "
            code += "run_name='__main__')"
            environment = self.environment | known | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-c", code, *self.desk.overrides(**more)]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            started.append(subprocess.Popen(command, env=environment, text=True, **pipes))
        return started

    def run(self, script: str, faults: dict[int, str], **more: Any) -> list[Ended]:
        started = self.start(str(ROOT / script), faults, **more)
        return [ended(process) for process in started]


def ended(process: subprocess.Popen[str]) -> Ended:
    try:
        printed, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ended(process.returncode, printed, said)


@pytest.fixture
def crew(desk: Desk) -> Crew:
    return Crew(desk)


def vectors_in(folder: str) -> dict[str, Any]:
    """What is in the files of a folder and below, by their paths there."""
    found: dict[str, Any] = {}
    for path in Path(folder).rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".pt":
            found[name] = torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            found[name] = json.loads(path.read_text())
    return found


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """All vectors to the rounding of float32, and the same said of them."""
    assert found.keys() == wanted.keys()
    assert any(name.endswith(".pt") for name in wanted)
    for name, values in wanted.items():
        if name.endswith(".pt"):
            torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6)
        elif name.endswith("metadata.json"):
            assert found[name]["vectors"].keys() == values["vectors"].keys()
            for entry, about in values["vectors"].items():
                same = found[name]["vectors"][entry]
                assert same["data"] == about["data"]
                assert same.get("residual_norm") == pytest.approx(about.get("residual_norm"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[*TORCHRUN, "2"], [*ACCELERATE, "--num_processes", "2"]])
def test_two_processes_make_the_vectors_of_one_by_every_method(crew: Crew, launcher: list[str]):
    crew.desk.write("lm_steer.yaml", SMALL)
    paths = [f"hparams/Steer/{m}_hparams/generate_{m}.yaml" for m in METHODS[:-1]]
    more = {"steer_train_hparam_paths": f"[{','.join([*paths, 'lm_steer.yaml'])}]"}
    alone = crew.launched([], "one", **more)
    assert alone.status == 0, alone.said
    together = crew.launched(launcher, "two", **more)
    assert together.status == 0, together.said
    wanted = vectors_in("one")
    assert len({name.split("/")[1] for name in wanted}) == len(METHODS)
    assert_same(vectors_in("two"), wanted)
    # The main process alone speaks and shows what was found.
    shown = [
        [row for row in run.printed.replace(folder, "").split("\n") if "seconds" not in row]
        for run, folder in ((alone, "one/"), (together, "two/"))
    ]
    assert shown[0] == shown[1]
    line = "caa on mine: 6 rows"
    assert together.said.count(line) == alone.said.count(line) > 0
    again = crew.launched(launcher, "two", resume="true", **more)
    assert again.status == 0
    assert again.said.count("already made") == len(METHODS)


LISTING = """
import atexit, os, sys
def tell():
    threads = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    print("left behind:", [name for name in threads if "gloo" in name], file=sys.stderr)
atexit.register(tell)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the threads are not listed here")
def test_no_thread_of_the_exchange_is_left_when_a_process_ends(crew: Crew):
    # One that is may abort the process (SIGABRT), now and then.
    for one in crew.run("vectors_generate.py", dict.fromkeys(range(2), LISTING)):
        assert one.status == 0, one.said
        assert "left behind: []" in one.said


@pytest.mark.slow
@pytest.mark.parametrize("pairs, number", [(3, 2), (1, 3)], ids=["uneven", "fewer than processes"])
@pytest.mark.parametrize("method", ["caa", "pca"])
def test_few_pairs_may_leave_a_process_without_any(
    crew: Crew, method: str, pairs: int, number: int
):
    rows = [pair(n) for n in range(pairs)]
    rows[0]["matching"] *= 4
    crew.desk.rows("train.jsonl", rows)
    for out, launcher in {"one": [], "two": [*TORCHRUN, str(number)]}.items():
        done = crew.launched(launcher, out, methods=f"[{method}]")
        assert done.status == 0, done.said
    assert_same(vectors_in("two"), vectors_in("one"))


@pytest.mark.slow
def test_features_of_a_sparse_autoencoder_are_summed_over_processes(crew: Crew):
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (16, 24), "b_enc": (24,), "W_dec": (24, 16), "b_dec": (16,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    about = {"architecture": "standard", "d_in": 16, "d_sae": 24, "metadata": HOOK}
    sae_lens(crew.desk.folder / "sae", weights, **about)
    more = {"methods": "[sta]", "sae_paths": "[sae]", "trims": "[0.5]"}
    for out, launcher in {"one": [], "two": [*TORCHRUN, "2"]}.items():
        done = crew.launched(launcher, out, **more)
        assert done.status == 0, done.said
    wanted = vectors_in("one")
    assert any("feature_sums" in name for name in wanted)
    assert_same(vectors_in("two"), wanted)


@pytest.mark.slow
def test_the_embedded_model_gives_the_same_vectors(crew: Crew):
    crew.desk.rows("train.jsonl", [pair(n) for n in range(20)])
    more = {"model_name_or_path": "SmolLM2-135M-Instruct", "layers": "[3,15]"}
    for out, launcher in {"one": [], "two": [*TORCHRUN, "2"]}.items():
        done = crew.launched(launcher, out, **more)
        assert done.status == 0, done.said
    assert_same(vectors_in("two"), vectors_in("one"))


# ---- when one fails ----

BROKEN = """
from steer.models import SteeredModel
def read(*_): raise ValueError("this machine is tired")
SteeredModel.read = read
"""
KILLED = """
import os
from steer.models import SteeredModel
def read(*_): os.kill(os.getpid(), 9)
SteeredModel.read = read
"""
# One answer a pass, and 0.2 s for each.
SLOW = """
import time
from steer.models import SteeredModel
read = SteeredModel.read
def slowly(*given):
    time.sleep(0.2)
    print("read", flush=True)
    return read(*given)
SteeredModel.read = slowly
"""


@pytest.mark.slow
def test_a_process_that_fails_ends_all_and_its_error_is_told_once(crew: Crew):
    crew.desk.rows("train.jsonl", [pair(n) for n in range(100)])
    main, other = crew.run("vectors_generate.py", {0: SLOW, 1: BROKEN}, batch_size=1)
    assert main.status == 1
    assert "error: process 1: this machine is tired" in main.said
    # Told in the middle of its 100 answers.
    assert main.printed.count("read") < 50
    assert (other.status, "tired" in other.said) == (0, False)
    assert not vectors_in("out")


@pytest.mark.slow
def test_an_error_of_the_main_process_is_told_once(crew: Crew):
    crew.desk.rows("train.jsonl", [{"question": "How?"}])
    main, other = crew.run("vectors_generate.py", {})
    assert main.status == 1
    assert "row 1" in main.said
    assert (other.status, other.printed, "row 1" in other.said) == (0, "", False)


@pytest.mark.slow
def test_a_process_that_is_killed_does_not_let_the_main_one_wait(crew: Crew):
    main, other = crew.run("vectors_generate.py", {1: KILLED})
    assert other.status == -signal.SIGKILL
    assert main.status == 1
    assert "another process was killed before its work was done" in main.said
    main, other = crew.run("vectors_generate.py", {0: KILLED})
    assert (main.status, other.status) == (-signal.SIGKILL, 0)


@pytest.mark.slow
def test_an_interruption_ends_all(crew: Crew):
    crew.desk.rows("train.jsonl", [pair(n) for n in range(300)])
    script = str(ROOT / "vectors_generate.py")
    started = crew.start(script, {0: SLOW, 1: SLOW}, batch_size=1)
    for process in started:
        assert process.stdout is not None
        process.stdout.readline()
    for process in started:
        process.send_signal(signal.SIGINT)
    main, other = (ended(process) for process in started)
    assert (main.status, other.status) == (130, 130)
    assert (main.said.count("interrupted: "), other.said.count("interrupted: ")) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["steering.py", "vectors_apply.py"])
def test_what_one_process_has_to_do_is_refused(crew: Crew, script: str):
    main, other = crew.run(script, {})
    assert main.status == 1
    assert "error: 2 processes were launched, and this program is for one" in main.said
    assert (other.status, "error" in other.said) == (0, False)
