"""Fixtures. What is heavy to import is imported by those that need it.

With workers, one process more reads this file, and does nothing else with it.
"""

import gc
import logging
import os
import ssl
from collections.abc import Container, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest
from architectures import ARCHITECTURES

if TYPE_CHECKING:
    from desk import Desk
    from pages import Reader

    from steer.models import SteeredModel


# Each HTTP client of a test would read all certificates anew.
ssl.create_default_context = cache(ssl.create_default_context)
# What imports and collecting make stays until the end: looking through it again and again is idle.
gc.disable()


def pytest_collection_finish() -> None:
    """Let the garbage collector pass by, from now on, what imports and collecting made."""
    gc.freeze()
    gc.enable()


def slow_but(quick: Container[Any], every: Iterable[Any]) -> list[Any]:
    """Parameters of a test that `make check` runs on the `quick` ones only."""
    return [one if one in quick else pytest.param(one, marks=pytest.mark.slow) for one in every]


@pytest.fixture(autouse=True)
def _logging_of_the_test_alone() -> Iterator[None]:
    """What a command sets up of logging ends with its test."""
    root, steer, bars = (logging.getLogger(n) for n in (None, "steer", "steer.progress"))
    handlers, levels, disabled = root.handlers[:], (root.level, steer.level), bars.disabled
    yield
    root.handlers[:], bars.disabled = handlers, disabled
    root.setLevel(levels[0])
    steer.setLevel(levels[1])


@pytest.fixture(params=slow_but(["llama"], ["llama", "gpt2"]))
def model(request: pytest.FixtureRequest) -> "SteeredModel":
    from tiny import steered, tiny_config

    return steered(tiny_config(request.param))


@pytest.fixture(params=slow_but(["gpt2", "gemma2"], ARCHITECTURES))
def every(request: pytest.FixtureRequest) -> "SteeredModel":
    """A model of each architecture in turn; weights are made once, to be left as they are."""
    from tiny import kept

    from steer.models import SteeredModel

    made = kept(request.param)
    return SteeredModel(made.model, made.tokenizer)


@pytest.fixture
def no_weights_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: what other tests of this one hold is not there."""
    from steer.models import load

    monkeypatch.setattr(load, "_in_use", WeakValueDictionary())
    monkeypatch.setattr(load, "_latest", [])


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Llama and its tokenizer, as `save_pretrained` writes it."""
    from tiny import steered, tiny_config

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny = steered(tiny_config("llama"))
    tiny.model.save_pretrained(folder)
    tiny.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "SteeredModel"]:
    """A GGUF file of a tiny Llama, and the model that was written to it."""
    from tiny import steered, tiny_config, write_gguf

    tiny = steered(tiny_config("llama", vocab_size=259))
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, tiny)
    return path, tiny


@pytest.fixture
def desk(
    tmp_path: Path,
    tiny_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> "Desk":
    """A folder to run the scripts in."""
    from desk import Desk

    return Desk(tmp_path, tiny_folder, monkeypatch, capsys)


@pytest.fixture
def reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> "Iterator[Reader]":
    """A reader of a page, in a working directory of their own."""
    from pages import Reader

    with Reader(tmp_path, monkeypatch, capsys).at_work() as it:
        yield it


@pytest.fixture(scope="session")
def embedded() -> "SteeredModel":
    """The embedded model; only for tests marked slow."""
    from steer.models.load import ModelSource

    return ModelSource(device="cpu", dtype="float32").load()
