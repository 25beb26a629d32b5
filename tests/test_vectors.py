"""Vectors on disk: EasyEdit2's layout, what stands beside it, and the formats of other programs."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TEMPLATE, byte_tokenizer, steered, tiny_config

import steer
from steer import BaseVectorApplier, BaseVectorGenerator
from steer.models import SteeredModel
from steer.models.facts import model_facts, weight_fingerprint
from steer.vectors import (
    annotate,
    export_gguf,
    export_safetensors,
    import_gguf,
    import_safetensors,
    load_vectors,
    read_metadata,
    save_vectors,
)
from steer.vectors.__main__ import main

ROOT = Path(__file__).resolve().parent.parent
V1 = Path(__file__).parent / "data" / "vectors_v1"
ROWS = [
    {"question": "How are you?", "matching": "Well, thank you.", "not_matching": "Go away."},
    {"question": "Who is it?", "matching": "A friend.", "not_matching": "Nobody."},
]
FACTS = {
    "id": "tiny",
    "hidden_size": 16,
    "num_layers": 3,
    "revision": None,
    "dtype": "float32",
    "fingerprint": "aa",
}


def visible(folder: Path) -> list[str]:
    """Files below `folder`, without hidden ones."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(p.as_posix() for p in paths if not p.name.startswith("."))


def parts_left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.suffix == ".part"]


def vector(seed: int = 0, size: int = 16) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, layers: Iterable[int] = (1, 2), **model: Any) -> dict[str, torch.Tensor]:
    """Vectors of `layers` in `folder`, made with the model `FACTS`, or another where given."""
    vectors = {f"layer_{n}": vector(n) for n in layers}
    facts = {**FACTS, **model}
    save_vectors(folder, vectors, {f"layer_{n}": {"layer": n, "model": facts} for n in layers})
    return vectors


def entries_of(folder: Path) -> dict[str, Any]:
    """What the metadata of `folder` says of each vector."""
    metadata = read_metadata(folder)
    assert metadata is not None
    return metadata["vectors"]


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """The same names, types and bits."""
    assert sorted(found) == sorted(wanted)
    assert {n: v.dtype for n, v in found.items()} == {n: v.dtype for n, v in wanted.items()}
    assert {n: bits(v) for n, v in found.items()} == {n: bits(v) for n, v in wanted.items()}


# ---- what a run writes --------------------------------------------------------------------------


class Trained:
    """CAA vectors of a tiny model in a folder, made as a user makes them."""

    def __init__(self, place: Path, model: Path):
        self.place, self.out, self.model = place, place / "out", model
        self.folder = self.out / "kindness" / "caa_vector"

    def run(self, rows: list[dict[str, str]] = ROWS, **method: Any) -> dict[str, torch.Tensor]:
        file = self.place / "caa.yaml"
        file.write_text(yaml.safe_dump({"alg_name": "caa", **method}), encoding="utf-8")
        config = {
            "model_name_or_path": str(self.model),
            "device": "cpu",
            "seed": 7,
            "use_chat_template": True,
            "steer_train_hparam_paths": [str(file)],
            "steer_vector_output_dirs": [str(self.out)],
        }
        generator = BaseVectorGenerator(config)
        return dict(generator.generate_vectors({"kindness": rows})["kindness"]["caa"])

    def entries(self) -> dict[str, Any]:
        return entries_of(self.folder)


@pytest.fixture
def trained(tmp_path: Path, tiny_folder: Path) -> Trained:
    return Trained(tmp_path, tiny_folder)


@pytest.mark.parametrize(
    "multiple_choice, folder", [(False, "caa_vector"), (True, "caa_vector_multiple_choice")]
)
def test_folders_and_files_have_the_names_of_easyedit2(
    trained: Trained, multiple_choice: bool, folder: str
):
    trained.run(layers=[0, 2], multiple_choice=multiple_choice)
    names = ["layer_0.pt", "layer_2.pt", "metadata.json"]
    assert visible(trained.out) == [f"kindness/{folder}/{name}" for name in names]


def test_a_file_is_a_bare_tensor_that_torch_opens_by_itself(trained: Trained):
    made = trained.run(layers=[1])
    found = torch.load(trained.folder / "layer_1.pt", weights_only=True)
    assert type(found) is torch.Tensor
    assert (found.shape, found.dtype, found.device.type) == ((16,), torch.float32, "cpu")
    assert not found.requires_grad
    assert_same({"layer_1": found}, made)


def test_metadata_says_what_a_vector_is_and_how_it_was_made(trained: Trained):
    made = trained.run(layers=[0, 2])
    metadata = read_metadata(trained.folder)
    assert metadata is not None
    assert metadata["format_version"] == 1
    assert "output of decoder block n" in metadata["hook_point"]
    assert sorted(metadata["vectors"]) == ["layer_0", "layer_2"]
    entry = metadata["vectors"]["layer_2"]
    assert entry["layer"] == 2
    assert entry["method"] == "caa"
    assert entry["hparams"]["layers"] == [0, 2]
    assert entry["hparams"]["use_chat_template"] is True
    assert entry["tokens_read"] == "mean over the answer"
    assert entry["seed"] == 7
    assert entry["versions"]["torch"] == importlib.metadata.version("torch")
    assert entry["versions"]["steer"] == steer.__version__
    assert "transformers" in entry["versions"]
    assert (entry["data"]["name"], entry["data"]["rows"]) == ("kindness", 2)
    assert entry["chat_template_sha256"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    file = trained.folder / entry["file"]
    assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert entry["norm"] == pytest.approx(made["layer_2"].norm().item())
    assert (entry["shape"], entry["dtype"]) == ([16], "float32")
    assert entry["residual_norm"] > 0


def test_metadata_says_which_model_a_vector_is_for(trained: Trained):
    trained.run(layers=[1])
    model = trained.entries()["layer_1"]["model"]
    fingerprint = model.pop("fingerprint")
    assert model == {
        "id": "tiny-llama",
        "architecture": "LlamaForCausalLM",
        "model_type": "llama",
        "hidden_size": 16,
        "num_layers": 3,
        "revision": None,
        "dtype": "float32",
    }
    assert re.fullmatch(r"[0-9a-f]{64}", fingerprint)


def test_the_datas_fingerprint_changes_with_one_letter_and_nothing_else_does(trained: Trained):
    trained.run(layers=[1])
    before = trained.entries()["layer_1"]
    trained.run([ROWS[0], {**ROWS[1], "question": "Who is there?"}], layers=[1])
    after = trained.entries()["layer_1"]
    assert before["data"]["sha256"] != after["data"]["sha256"]
    assert before["model"] == after["model"]
    trained.run(layers=[1])
    assert trained.entries()["layer_1"] == before


def test_metadata_holds_no_place_on_this_machine(trained: Trained):
    trained.run(layers=[1])
    text = (trained.folder / "metadata.json").read_text(encoding="utf-8")
    assert str(trained.place) not in text
    assert str(trained.model.parent) not in text
    assert '"/' not in text


def test_a_setting_that_is_a_place_on_this_machine_keeps_its_last_name_alone(trained: Trained):
    trained.run(layers=[1], system_prompt=str(trained.place))
    assert trained.entries()["layer_1"]["hparams"]["system_prompt"] == trained.place.name
    trained.run(layers=[1], system_prompt="/no/such place")
    assert trained.entries()["layer_1"]["hparams"]["system_prompt"] == "/no/such place"


def test_the_residual_norm_is_the_median_over_answers_of_a_tokens_usual_norm(trained: Trained):
    rows = [{"question": "Yes?", "matching": a, "not_matching": b} for a, b in ("ab", "cd", "ef")]
    trained.run(rows, layers=[1])
    loaded = steer.ModelSource(model_name_or_path=str(trained.model), device="cpu").load()
    norms = []
    for row in rows:
        for key in ("matching", "not_matching"):
            text = f"<user>Yes?\n<assistant> {row[key]}"
            ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
            with torch.no_grad():
                hidden = loaded.model(ids, output_hidden_states=True).hidden_states[2][0]
            norms.append(hidden[-2:].norm(dim=-1).median().item())
    expected = torch.tensor(norms).median().item()
    assert trained.entries()["layer_1"]["residual_norm"] == pytest.approx(expected, rel=1e-4)


# ---- one folder, many runs ----------------------------------------------------------------------


def test_a_run_on_other_layers_leaves_vectors_and_metadata_of_the_first(trained: Trained):
    first = trained.run(layers=[0, 1])
    before = trained.entries()
    second = trained.run(layers=[2])
    after = trained.entries()
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["layer_0", "layer_1", "layer_2"]
    assert_same(load_vectors(trained.folder, list(after)), first | second)


def test_a_layer_made_anew_takes_the_place_of_the_old_one_alone(trained: Trained):
    trained.run(layers=[0, 1])
    before = trained.entries()
    made = trained.run(ROWS[:1], layers=[1])
    after = trained.entries()
    assert after["layer_0"] == before["layer_0"]
    assert after["layer_1"]["data"]["rows"] == 1
    assert_same(load_vectors(trained.folder, ["layer_1"]), made)


@pytest.mark.slow
def test_what_is_added_to_one_entry_leaves_the_others(tmp_path: Path):
    save_vectors(tmp_path, {"layer_1": torch.ones(4), "layer_2": torch.ones(4)}, {})
    annotate(tmp_path, {"hub": "there"})
    annotate(tmp_path, {"verdict": "works"}, ["layer_2"])
    entries = read_metadata(tmp_path)["vectors"]
    added = [{key: one.get(key) for key in ("hub", "verdict")} for one in entries.values()]
    assert added == [{"hub": "there", "verdict": None}, {"hub": "there", "verdict": "works"}]


def test_threads_that_write_one_folder_at_once_lose_nothing(tmp_path: Path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: saved(tmp_path, [n]), range(16)))
    wanted = {f"layer_{n}": vector(n) for n in range(16)}
    assert_same(load_vectors(tmp_path, list(wanted)), wanted)
    assert sorted(entries_of(tmp_path)) == sorted(wanted)


@pytest.mark.slow
def test_threads_that_write_one_vector_at_once_leave_one_that_fits_its_metadata(tmp_path: Path):
    def write(seed: int) -> None:
        save_vectors(tmp_path, {"layer_1": vector(seed)}, {"layer_1": {"seed": seed}})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    found = load_vectors(tmp_path, ["layer_1"])
    assert_same(found, {"layer_1": vector(entries_of(tmp_path)["layer_1"]["seed"])})


@pytest.mark.slow
def test_processes_that_write_one_folder_at_once_lose_nothing(tmp_path: Path):
    code = (
        "import sys, torch; from steer.vectors import save_vectors\n"
        "for n in range(int(sys.argv[2]), 20, 2):\n"
        "    save_vectors(sys.argv[1], {f'layer_{n}': torch.full((4,), n / 2)}, {})\n"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(first)], cwd=ROOT)
        for first in (0, 1)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    wanted = {f"layer_{n}": torch.full((4,), n / 2) for n in range(20)}
    assert_same(load_vectors(tmp_path, list(wanted)), wanted)
    assert sorted(entries_of(tmp_path)) == sorted(wanted)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_full_disk_leaves_the_old_vectors_and_their_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
):
    old = saved(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in visible(tmp_path)}
    calls = iter(range(1, 100))

    def full(_handle: int) -> None:
        if next(calls) == failing:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"cannot write .*: No space left on device; nothing was"):
            save_vectors(tmp_path, {name: v + 1 for name, v in old.items()}, {})
    assert {name: (tmp_path / name).read_bytes() for name in visible(tmp_path)} == before
    assert parts_left(tmp_path) == []
    assert_same(load_vectors(tmp_path, list(old)), old)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/sub/metadata.json"):
        save_vectors(tmp_path / "file" / "sub", {"layer_1": vector()}, {})


def test_a_vector_that_is_not_finite_is_not_saved(tmp_path: Path):
    with pytest.raises(ValueError, match="vector layer_1 holds NaN or infinity"):
        save_vectors(tmp_path, {"layer_0": vector(), "layer_1": vector() / 0}, {})
    assert visible(tmp_path) == []


# ---- what is loaded, and what is refused --------------------------------------------------------


def test_version_1_of_the_format_loads_for_ever():
    names = ["layer_0", "layer_1", "layer_2"]
    facts = {"id": "tiny-llama", "hidden_size": 16, "num_layers": 3, "dtype": "float32"}
    found = load_vectors(V1, names, model={**facts, "fingerprint": None})
    wanted = {f"layer_{n}": (torch.arange(16.0) - 8) * (n + 1) / 8 for n in range(3)}
    assert_same(found, wanted)


def test_version_1_tells_which_models_it_does_not_fit():
    facts = {"id": "other", "hidden_size": 16, "num_layers": 3, "dtype": "float32"}
    with pytest.raises(ValueError, match="it was made with tiny-llama, the model is other"):
        load_vectors(V1, ["layer_1"], model={**facts, "fingerprint": "bb"})


def test_a_version_to_come_is_refused(tmp_path: Path):
    saved(tmp_path)
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(
        ValueError, match="has format_version 2; this version of steer reads 1 to 1"
    ):
        load_vectors(tmp_path, ["layer_1"])


@pytest.mark.parametrize("text", ["{", "[]", '{"vectors": 3}', '{"vectors": {"layer_1": 3}}'])
def test_broken_metadata_is_named(tmp_path: Path, text: str):
    saved(tmp_path)
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(ValueError, match=r"metadata.json is not"):
        load_vectors(tmp_path, ["layer_1"])


def test_a_folder_of_easyedit2_loads_as_it_is_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    brain = vector().bfloat16()
    torch.save(brain, tmp_path / "layer_1.pt")
    found = load_vectors(tmp_path, ["layer_1"], model=FACTS)
    assert_same(found, {"layer_1": brain})
    assert "metadata.json says nothing about layer_1" in caplog.text
    assert visible(tmp_path) == ["layer_1.pt"]


def test_a_folder_with_metadata_loads_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    vectors = saved(tmp_path)
    assert_same(load_vectors(tmp_path, list(vectors), model=FACTS), vectors)
    assert caplog.text == ""


def test_a_folder_of_easyedit2_steers(tmp_path: Path):
    model = steered(tiny_config("llama"))
    torch.save(vector().bfloat16(), tmp_path / "layer_1.pt")
    file = tmp_path / "caa.yaml"
    file.write_text(yaml.safe_dump({"alg_name": "caa", "layers": [1], "multipliers": [-2]}))
    config = {"apply_steer_hparam_paths": str(file), "steer_vector_load_dir": str(tmp_path)}
    applier = BaseVectorApplier(config, model)
    applier.apply_vectors()
    (edit,) = applier.model.interventions()
    torch.testing.assert_close(edit.edit.change(), -2 * vector().bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("described", [True, False])
@pytest.mark.parametrize("allow_mismatch", [False, True])
def test_another_width_is_refused_whatever_is_allowed(
    tmp_path: Path, described: bool, allow_mismatch: bool
):
    saved(tmp_path, [1])
    if not described:
        (tmp_path / "metadata.json").unlink()
    wide = {**FACTS, "hidden_size": 32}
    with pytest.raises(ValueError, match=r"shape is \[16\], the model tiny is 32 wide"):
        load_vectors(tmp_path, ["layer_1"], model=wide, allow_mismatch=allow_mismatch)


def test_a_matrix_is_not_taken_for_a_vector(tmp_path: Path):
    torch.save(torch.ones(2, 16), tmp_path / "layer_1.pt")
    with pytest.raises(ValueError, match=r"shape is \[2, 16\], the model tiny is 16 wide"):
        load_vectors(tmp_path, ["layer_1"], model=FACTS)


OTHERS = {
    "another model": ({"id": "other", "fingerprint": "bb"}, "it was made with tiny, the model is"),
    "too few layers": ({"num_layers": 2}, "it is for layer 2, the model tiny has layers 0 to 1"),
    "other weights": ({"fingerprint": "bb"}, "it was made with other weights of the name 'tiny'"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_vector_of_another_model_is_refused_unless_allowed(tmp_path: Path, kind: str):
    changed, message = OTHERS[kind]
    vectors = saved(tmp_path)
    with pytest.raises(ValueError, match=f"layer_2.pt does not fit: {message}.*allow_mismatch"):
        load_vectors(tmp_path, ["layer_2"], model=FACTS | changed)
    found = load_vectors(tmp_path, list(vectors), model=FACTS | changed, allow_mismatch=True)
    assert_same(found, vectors)


@pytest.mark.parametrize(
    "changed",
    [{"id": "moved"}, {"dtype": "float16", "fingerprint": "bb"}, {"fingerprint": None}],
    ids=["same weights in another folder", "rounded in another dtype", "offloaded"],
)
def test_a_vector_of_the_same_model_is_taken(tmp_path: Path, changed: dict[str, Any]):
    vectors = saved(tmp_path)
    assert_same(load_vectors(tmp_path, list(vectors), model=FACTS | changed), vectors)


def test_two_models_without_a_name_are_told_apart_by_their_weights(tmp_path: Path):
    one, other = (SteeredModel(steered(tiny_config("llama")).model, byte_tokenizer()) for _ in "ab")
    save_vectors(tmp_path, {"layer_1": vector()}, {"layer_1": {"model": model_facts(one)}})
    load_vectors(tmp_path, ["layer_1"], model=model_facts(other))
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(2)
    with pytest.raises(ValueError, match="made with other weights"):
        load_vectors(tmp_path, ["layer_1"], model=model_facts(other))


def test_the_fingerprint_of_weights_does_not_depend_on_bfloat16_and_not_on_the_device():
    model = steered(tiny_config("llama")).model
    before = weight_fingerprint(model)
    assert weight_fingerprint(model.bfloat16()) == before
    assert weight_fingerprint(model.to("meta")) is None


def test_the_settings_allow_a_transfer(tmp_path: Path):
    saved(tmp_path, [1], id="other", fingerprint="bb")
    model = steered(tiny_config("llama"))
    file = tmp_path / "caa.yaml"
    config = {"apply_steer_hparam_paths": str(file), "steer_vector_load_dir": str(tmp_path)}
    file.write_text(yaml.safe_dump({"alg_name": "caa", "layers": [1]}))
    with pytest.raises(ValueError, match="it was made with other"):
        BaseVectorApplier(config, model).apply_vectors()
    file.write_text(yaml.safe_dump({"alg_name": "caa", "layers": [1], "allow_mismatch": True}))
    BaseVectorApplier(config, model).apply_vectors()


def test_a_layer_that_was_not_made_is_named_with_those_that_were(tmp_path: Path):
    saved(tmp_path, [1, 2, 10])
    with pytest.raises(
        FileNotFoundError, match=r"no layer_3.pt .*: layer_1, layer_2, layer_10: run"
    ):
        load_vectors(tmp_path, ["layer_3"])


def test_a_file_that_was_changed_since_is_refused(tmp_path: Path):
    saved(tmp_path)
    shutil.copy(tmp_path / "layer_2.pt", tmp_path / "layer_1.pt")
    with pytest.raises(
        ValueError, match=r"layer_1.pt is not the file that metadata.json describes"
    ):
        load_vectors(tmp_path, ["layer_1"])


class Harmful:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Harmful(), tmp_path / "layer_1.pt")
    with pytest.raises(ValueError, match=r"layer_1.pt is broken, or holds more than tensors"):
        load_vectors(tmp_path, ["layer_1"])
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    "value, message",
    [
        ([torch.ones(16)], "must hold one tensor: got list"),
        ({"a": torch.ones(16)}, "must hold one tensor: got dict"),
        (torch.full((16,), torch.nan), "holds NaN or infinity"),
    ],
)
def test_a_file_with_something_else_is_refused(tmp_path: Path, value: object, message: str):
    torch.save(value, tmp_path / "layer_1.pt")
    with pytest.raises(ValueError, match=message):
        load_vectors(tmp_path, ["layer_1"])


def cut_and_spoilt(data: bytes) -> list[bytes]:
    """`data` cut off at 40 places, and with a byte changed at as many."""
    places = sorted({len(data) * n // 40 for n in range(40)})
    changed = [data[:p] + bytes([data[p] ^ 0xFF]) + data[p + 1 :] for p in places]
    return [data[:p] for p in places] + changed


def test_a_broken_tensor_file_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "layer_1.pt"
    torch.save(vector(), path)
    for data in cut_and_spoilt(path.read_bytes()):
        path.write_bytes(data)
        try:
            found = load_vectors(tmp_path, ["layer_1"])
        except ValueError as error:
            assert "layer_1.pt" in str(error)  # noqa: PT017 - a changed number is no error
        else:
            assert len(data) >= found["layer_1"].nbytes


# ---- safetensors --------------------------------------------------------------------------------


def test_safetensors_keeps_every_bit_and_all_metadata(tmp_path: Path):
    wanted = {"layer_1": vector(1), "layer_10": vector(2).bfloat16(), "layer_2": vector(3).double()}
    about = {n: {"layer": int(n[6:]), "model": FACTS, "data": {"name": "é"}} for n in wanted}
    save_vectors(tmp_path / "a", wanted, about)
    names = export_safetensors(tmp_path / "a", tmp_path / "all.safetensors")
    assert names == ["layer_1", "layer_2", "layer_10"]
    assert sorted(import_safetensors(tmp_path / "all.safetensors", tmp_path / "b")) == sorted(names)
    assert_same(load_vectors(tmp_path / "b", names, model=None), wanted)
    assert read_metadata(tmp_path / "b") == read_metadata(tmp_path / "a")


def test_safetensors_of_a_folder_is_an_ordinary_file(tmp_path: Path):
    vectors = saved(tmp_path)
    export_safetensors(tmp_path, tmp_path / "sub" / "all.safetensors")
    with safe_open(tmp_path / "sub" / "all.safetensors", "pt") as file:
        assert_same({n: file.get_tensor(n) for n in file.keys()}, vectors)  # noqa: SIM118


def test_safetensors_of_others_are_taken_in(tmp_path: Path):
    save_file({"layer_1": vector()}, tmp_path / "other.safetensors", metadata={"by": "somebody"})
    import_safetensors(tmp_path / "other.safetensors", tmp_path / "b")
    assert_same(load_vectors(tmp_path / "b", ["layer_1"], model=FACTS), {"layer_1": vector()})


@pytest.mark.parametrize("name", ["../layer_1", "/tmp/layer_1", "a/b", ".hidden", "", "a\\b"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str):
    save_file({name: vector()}, tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match="is no name for a vector"):
        import_safetensors(tmp_path / "bad.safetensors", tmp_path / "b" / "c")
    assert visible(tmp_path) == ["bad.safetensors"]


@pytest.mark.parametrize(
    "header, message",
    [
        ("{", "its metadata 'steer' is broken"),
        ('{"vectors": 1}', "is not a steering vector's metadata"),
    ],
)
def test_a_header_that_is_broken_is_refused(tmp_path: Path, header: str, message: str):
    save_file({"layer_1": vector()}, tmp_path / "bad.safetensors", metadata={"steer": header})
    with pytest.raises(ValueError, match=message):
        import_safetensors(tmp_path / "bad.safetensors", tmp_path / "b")


def test_a_broken_safetensors_file_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "all.safetensors"
    saved(tmp_path / "a")
    export_safetensors(tmp_path / "a", path)
    for data in cut_and_spoilt(path.read_bytes())[:40]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"all.safetensors is not a safetensors file"):
            import_safetensors(path, tmp_path / "b")


def test_there_must_be_something_to_export_and_to_import(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for ending, export in (("safetensors", export_safetensors), ("gguf", export_gguf)):
        with pytest.raises(ValueError, match="a has no vectors: nothing to export"):
            export(tmp_path / "a", tmp_path / f"x.{ending}")
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match=r"empty.safetensors has no tensors: nothing to import"):
        import_safetensors(tmp_path / "empty.safetensors", tmp_path / "b")


# ---- control vectors of llama.cpp and repeng ----------------------------------------------------


def test_a_control_vector_holds_what_llama_cpp_and_repeng_read(tmp_path: Path):
    vectors = saved(tmp_path, [10, 2], model_type="llama")
    assert export_gguf(tmp_path, tmp_path / "v.gguf") == ["layer_2", "layer_10"]
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values["general.architecture"] == "controlvector"
    assert values["controlvector.model_hint"] == "llama"
    # As in repeng's export and llama.cpp's cvector-generator: directions in the file.
    assert values["controlvector.layer_count"] == 2
    assert [t.name for t in reader.tensors] == ["direction.2", "direction.10"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [16]
        name = tensor.name.replace("direction.", "layer_")
        assert tensor.data.tobytes() == vectors[name].numpy().tobytes()


def test_a_control_vector_comes_back_bit_for_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    vectors = saved(tmp_path / "a", model_type="llama")
    export_gguf(tmp_path / "a", tmp_path / "v.gguf")
    assert import_gguf(tmp_path / "v.gguf", tmp_path / "b") == ["layer_1", "layer_2"]
    with caplog.at_level("INFO"):
        assert_same(load_vectors(tmp_path / "b", list(vectors), model=FACTS), vectors)
    assert "which model layer_1, layer_2 is for is not known, and not checked" in caplog.text
    entry = entries_of(tmp_path / "b")["layer_2"]
    assert (entry["layer"], entry["model_hint"]) == (2, "llama")


def test_bfloat16_is_exported_in_float32(tmp_path: Path):
    torch.save(vector().bfloat16(), tmp_path / "layer_1.pt")
    export_gguf(tmp_path, tmp_path / "v.gguf")
    import_gguf(tmp_path / "v.gguf", tmp_path / "b")
    assert_same(load_vectors(tmp_path / "b", ["layer_1"]), {"layer_1": vector().bfloat16().float()})


def test_vectors_with_longer_names_are_exported_by_their_layer(tmp_path: Path):
    save_vectors(tmp_path / "a", {"layer_3_act_and_freq_trim0.65": vector()}, {})
    export_gguf(tmp_path / "a", tmp_path / "v.gguf")
    assert import_gguf(tmp_path / "v.gguf", tmp_path / "b") == ["layer_3"]


def written_by_others(path: Path, tensors: dict[str, np.ndarray], *, hint: bool = True) -> None:
    writer = gguf.GGUFWriter(path, "controlvector")
    if hint:
        writer.add_string("controlvector.model_hint", "mistral")
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("hint", [True, False])
def test_half_precision_directions_of_others_are_taken_in(tmp_path: Path, hint: bool):
    half = vector().half()
    written_by_others(tmp_path / "v.gguf", {"direction.7": half.numpy()}, hint=hint)
    assert import_gguf(tmp_path / "v.gguf", tmp_path / "b") == ["layer_7"]
    assert_same(load_vectors(tmp_path / "b", ["layer_7"]), {"layer_7": half.float()})


def test_a_gguf_file_of_something_else_is_refused(tmp_path: Path):
    written_by_others(tmp_path / "v.gguf", {"token_embd.weight": vector().numpy()})
    with pytest.raises(
        ValueError, match=r"v.gguf has no tensor direction.<n>: it is not a control"
    ):
        import_gguf(tmp_path / "v.gguf", tmp_path / "b")


def test_layer_0_is_refused_as_llama_cpp_has_none(tmp_path: Path):
    saved(tmp_path, [0, 1])
    with pytest.raises(
        ValueError, match=r"has a vector for layer 0, which llama.cpp's .* not have"
    ):
        export_gguf(tmp_path, tmp_path / "v.gguf")
    assert not (tmp_path / "v.gguf").exists()


@pytest.mark.parametrize(
    "vectors, message",
    [
        ({"layer_1": (16,), "layer_1_merged_vector": (16,)}, "two vectors for layer 1"),
        ({"layer_1": (16,), "layer_2": (8,)}, "one dimension and one width"),
        ({"layer_1": (2, 8)}, "one dimension and one width"),
        ({"direction": (16,)}, "which layer direction is for is not known"),
    ],
)
def test_what_a_control_vector_cannot_hold_is_refused(
    tmp_path: Path, vectors: dict[str, tuple[int, ...]], message: str
):
    save_vectors(tmp_path, {name: torch.ones(shape) for name, shape in vectors.items()}, {})
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path, tmp_path / "v.gguf")


@pytest.mark.parametrize("step", ["write_header_to_file", "write_tensors_to_file"])
def test_an_export_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    saved(tmp_path / "a")
    (tmp_path / "v.gguf").write_bytes(b"old")
    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, step, fail)
        with pytest.raises(OSError, match="No space left"):
            export_gguf(tmp_path / "a", tmp_path / "v.gguf")
    assert (tmp_path / "v.gguf").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "v.gguf"]


def test_a_broken_gguf_file_is_an_error_that_names_it(tmp_path: Path):
    path = tmp_path / "v.gguf"
    saved(tmp_path / "a")
    export_gguf(tmp_path / "a", path)
    broken = cut_and_spoilt(path.read_bytes())
    for data in broken[:40]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"v\.gguf"):
            import_gguf(path, tmp_path / "b")
    refused = 0
    for number, data in enumerate(broken[40:]):
        path.write_bytes(data)
        try:
            import_gguf(path, tmp_path / f"b{number}")
        except ValueError as error:
            refused += 1
            assert "v.gguf" in str(error) or "NaN" in str(error)  # noqa: PT017 - see above
    assert refused


# ---- the command --------------------------------------------------------------------------------


def command(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["safetensors", "gguf"])
def test_the_command_exports_and_imports(
    tmp_path: Path, capsys: pytest.CaptureFixture, ending: str
):
    vectors = saved(tmp_path / "a")
    file = tmp_path / f"v.{ending}"
    command("export", tmp_path / "a", file)
    assert capsys.readouterr().out == f"written: {file} (layer_1, layer_2)\n"
    command("import", file, tmp_path / "b")
    assert capsys.readouterr().out == f"written: {tmp_path / 'b'} (layer_1, layer_2)\n"
    assert_same(load_vectors(tmp_path / "b", list(vectors)), vectors)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "{}/none", "{}/v.gguf"], "error: no vector folder at .*none"),
        (["export", "{}/a", "{}/v.bin"], "error: unknown ending '.bin' .*allowed: .gguf, .safeten"),
        (["import", "{}/none.gguf", "{}/b"], "error: no vector file at .*none.gguf"),
        (["import", "{}/a/metadata.json", "{}/b"], "error: unknown ending '.json'"),
        (
            ["import", "{}/a/layer_1.gguf", "{}/b", "--layer", "1"],
            "error: layer 1 is for .pt files",
        ),
    ],
)
def test_the_command_ends_with_one_line_where_it_cannot(
    tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
):
    saved(tmp_path / "a")
    assert command(*(argument.format(tmp_path) for argument in arguments)) == 1
    assert re.fullmatch(f"{message}.*\n", capsys.readouterr().err)


def test_the_command_says_how_it_is_used(capsys: pytest.CaptureFixture):
    assert command("export") == 1
    said = capsys.readouterr().err
    assert "required: SOURCE, TARGET" in said
    assert "python -m steer.vectors export --help" in said
