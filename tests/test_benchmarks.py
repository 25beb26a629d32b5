"""Each benchmark runs at a tiny shape, and its figures are those of its own run."""

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
