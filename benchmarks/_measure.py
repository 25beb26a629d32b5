"""What the benchmarks share: models of a shape, interleaved repetitions, ratios with intervals."""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from steer.models import SteeredModel
from steer.models.load import ModelSource, auto_dtype, choose_device
from steer.passages import Passage

SHAPES = {
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "small": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "llama3-8b": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


class _NumberTokenizer:
    """Stands in where ids are made up: a text is their numbers."""

    pad_token_id = 0
    eos_token_id = None

    def decode(self, ids: list[int], **_: Any) -> str:
        """The numbers."""
        return " ".join(map(str, ids))

    def __call__(self, text: str | list[str], **_: Any) -> dict[str, Any]:
        """The numbers back."""
        if isinstance(text, list):
            return {"input_ids": [self(one)["input_ids"] for one in text]}
        return {"input_ids": [int(number) for number in text.split()]}


def parser(description: str) -> argparse.ArgumentParser:
    """The options of every benchmark."""
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--shape", choices=["embedded", *SHAPES], default="embedded")
    options.add_argument("--device", default="auto")
    options.add_argument("--repetitions", type=int, default=9)
    options.add_argument("--quick", action="store_true", help="few rows, three repetitions")
    options.add_argument("--json", type=Path, help="write the figures here too")
    return options


def load(shape: str, device: str) -> SteeredModel:
    """The embedded model, or one of that shape with random weights."""
    transformers_logging.set_verbosity_error()
    if shape == "embedded":
        return ModelSource(device=device).load()
    place = choose_device(device)
    torch.manual_seed(0)
    with place:
        config = LlamaConfig(**SHAPES[shape], dtype=auto_dtype(place), eos_token_id=None)
        model = AutoModelForCausalLM.from_config(config, dtype=auto_dtype(place))
    return SteeredModel(model.requires_grad_(True), _NumberTokenizer())  # type: ignore[arg-type]


def made_up_pairs(model: SteeredModel, number: int) -> tuple[list[Passage], list[Passage]]:
    """Pairs of random tokens: questions of 16 to 48 tokens, answers of 12 to 36 (seed 0)."""
    dice = random.Random(0)
    vocabulary = model.model.get_input_embeddings().weight.shape[0]
    wanted, shunned = [], []
    for _ in range(number):
        question = [dice.randrange(vocabulary) for _ in range(dice.randint(16, 48))]
        for side in (wanted, shunned):
            answer = [dice.randrange(vocabulary) for _ in range(dice.randint(12, 36))]
            ids = question + answer
            side.append(Passage(ids, len(question), len(ids)))
    return wanted, shunned


def interleaved(
    runs: dict[str, Callable[[], object]], repetitions: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run, A B C A B C ..., after one round that is not counted."""
    _round(runs, device)
    return _by_run([_round(runs, device) for _ in range(repetitions)])


def kept_rounds(
    runs: dict[str, Callable[[], object]],
    repetitions: int,
    device: torch.device,
    file: Path,
    what: dict[str, Any],
) -> dict[str, list[float]]:
    """As `interleaved`, for rounds of many minutes: each is a line of `file`, from the first.

    The same command, later or in several processes at once, goes on until there are so many.

    Raises:
        ValueError: `file` has rounds of anything but `what` on this machine.
    """
    what = what | _place()
    while len(done := _rounds(file, what)) < repetitions:
        line = json.dumps({"of": what, "seconds": _round(runs, device)})
        with file.open("a", encoding="utf-8") as lines:
            lines.write(line + "\n")
    return _by_run(done)


def _rounds(file: Path, what: dict[str, Any]) -> list[dict[str, float]]:
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rounds = [json.loads(line) for line in text.splitlines()]
    others = [one["of"] for one in rounds if one["of"] != what]
    if others:
        raise ValueError(f"{file} has rounds of {others[0]}, not of {what}: name another file")
    return [one["seconds"] for one in rounds]


def _round(runs: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    seconds = {}
    for name, run in runs.items():
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        seconds[name] = time.perf_counter() - start
    return seconds


def _by_run(rounds: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in rounds] for name in rounds[0]}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(model: SteeredModel) -> float:
    """This process's peak so far, in MiB; the GPU's where the model is on one."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Median of the pairwise ratios and its 95 % bootstrap interval (seed 0)."""
    values = np.array(over) / np.array(under)
    draws = np.random.default_rng(0).integers(len(values), size=(10_000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high)}


def report(
    what: dict[str, Any], times: dict[str, list[float]], ratios: dict[str, Any], file: Path | None
) -> None:
    """Print the figures as JSON; write them where asked."""
    figures = {
        **what,
        **_place(),
        "seconds": {
            name: {
                "rounds": len(values),
                "median": statistics.median(values),
                "min": min(values),
                "max": max(values),
            }
            for name, values in times.items()
        },
        "ratios": ratios,
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if file is not None:
        file.write_text(text + "\n", encoding="utf-8")


def _place() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": gpu or f"{platform.machine()} CPU",
    }
