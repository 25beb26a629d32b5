"""Benchmarks with a tiny shape run at it, and their figures are those of their own run."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


NO_SAE_LENS = pytest.mark.skipif(
    find_spec("sae_lens") is None, reason="sae-lens (extra `sae`) is not installed"
)
SAE_ENCODE = pytest.param("sae_encode", marks=NO_SAE_LENS)
NAMES = [
    "extraction",
    "generation",
    "judge",
    "lm_steer",
    "perplexity",
    "serving",
    "sta",
    "startup",
    "sweep",
    SAE_ENCODE,
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_writes_its_figures(name: str, tmp_path: Path):
    file = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py")]
    options = ["--shape", "tiny", "--device", "cpu", "--quick", "--json", str(file)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == figures
    for seconds in figures["seconds"].values():
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    for ratio in figures["ratios"].values():
        assert ratio["low"] <= ratio["median"] <= ratio["high"]


@pytest.mark.slow
def test_kept_rounds_are_gone_on_from_and_never_mixed(tmp_path: Path):
    kept = tmp_path / "rounds.jsonl"

    def run(repetitions: int, prompts: int = 4) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "benchmarks/generation.py"), "--shape", "tiny"]
        what = ["--device", "cpu", "--prompts", str(prompts), "--batch-size", "2"]
        how = ["--lengths", "2", "6", "--kept", str(kept), "--repetitions", str(repetitions)]
        return subprocess.run([*command, *what, *how], capture_output=True, text=True, check=False)

    first = run(2)
    assert first.returncode == 0, first.stderr[-2000:]
    lines = kept.read_text(encoding="utf-8")
    figures = json.loads(run(3).stdout)
    assert kept.read_text(encoding="utf-8").startswith(lines)
    rounds = [json.loads(line)["seconds"] for line in kept.read_text().splitlines()]
    assert [figures["seconds"][name]["rounds"] for name in ("fixed", "steer")] == [3, 3]
    assert figures["seconds"]["steer"]["max"] == max(one["steer"] for one in rounds)
    other = run(3, prompts=5)
    assert "name another file" in other.stderr
    assert other.returncode == 1
    assert len(kept.read_text().splitlines()) == 3
