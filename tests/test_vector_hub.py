"""Vectors to and from a local fake of the Hugging Face Hub."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_server import FakeHub, fake_hub

from steer.files import sha256
from steer.method_files import write_method_file
from steer.vectors import hub as hub_module
from steer.vectors import load_vectors, pull, push, read_metadata, save_vectors

ROOT = Path(__file__).resolve().parent.parent
REPO = "me/warm"
VECTOR = torch.arange(16, dtype=torch.bfloat16) / 4
VERDICT = {
    "works": True,
    "reasons": [],
    "effect": {"mean": 3.5, "low": 2.25, "high": 4.75, "pairs": 24},
    "controls": {"random vectors": [0.5, -1.0]},
    "on_control_pairs": 3.25,
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with fake_hub() as found:
        api = partial(huggingface_hub.HfApi, endpoint=found.root, token="hf_secret")
        monkeypatch.setattr(hub_module, "HfApi", api)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A vector with all that a library's has."""
    place = tmp_path / "warm" / "caa_vector"
    values = {"layers": [15], "multipliers": [2.0]}
    about = {"layer": 15, "method": "caa", "model": {"id": "org/model"}, "verdict": VERDICT}
    save_vectors(place, {"layer_15": VECTOR}, {"layer_15": {**about, "recommended": values}})
    write_method_file(place, "caa", values)
    return place


def last(hub: FakeHub) -> dict[str, bytes]:
    return list(hub.commits[REPO].values())[-1]


def test_what_is_pushed_is_pulled(hub: FakeHub, folder: Path, tmp_path: Path):
    commit = push(folder, REPO)
    pulled = pull(REPO, tmp_path / "back")
    assert (pulled.names, pulled.revision) == (["layer_15"], commit)
    assert torch.equal(load_vectors(tmp_path / "back", ["layer_15"])["layer_15"], VECTOR)
    about = read_metadata(tmp_path / "back")["vectors"]["layer_15"]
    assert about["verdict"] == VERDICT
    assert (about["hub"]["repo"], about["hub"]["revision"]) == (REPO, commit)
    method = "apply_caa.yaml"
    assert (tmp_path / "back" / method).read_bytes() == (folder / method).read_bytes()


def test_no_pickle_is_published_and_every_file_has_its_checksum(hub: FakeHub, folder: Path):
    push(folder, REPO)
    files = last(hub)
    own = {"vectors.safetensors", "README.md", "apply_caa.yaml"}
    assert files.keys() == own | {"checksums.json", ".gitattributes"}
    assert json.loads(files["checksums.json"]) == {name: sha256(files[name]) for name in own}
    assert set(hub.tokens) == {"Bearer hf_secret"}
    card = files["README.md"].decode()
    assert card.startswith("---\nlibrary_name: steer\n")
    assert "base_model: org/model\n" in card
    assert "+3.50 [+2.25, +4.75] nats a pair" in card
    # What a reader of the page can do.
    assert (
        "```bash\npython -m steer.vectors pull me/warm my/warm\npython vectors_apply.py \\\n"
        '  "apply_steer_hparam_paths=[my/warm/apply_caa.yaml]" \\\n'
        '  "steer_vector_load_dir=[my/warm]"\n```'
    ) in card
    assert str(folder) not in card
    assert "hf_secret" not in str(files)


def test_a_repository_is_made_private_where_asked_for(hub: FakeHub, folder: Path):
    push(folder, REPO)
    push(folder, "me/other", private=True)
    assert hub.private == ["me/other"]


def test_a_revision_stays_what_it_was(hub: FakeHub, folder: Path, tmp_path: Path):
    first = push(folder, REPO)
    save_vectors(folder, {"layer_15": -VECTOR}, {"layer_15": {"layer": 15}})
    second = push(folder, REPO)
    assert first != second
    for revision, wanted in ((first, VECTOR), (second, -VECTOR), (None, -VECTOR)):
        place = tmp_path / f"at {revision}"
        assert pull(REPO, place, revision=revision).revision == (revision or second)
        assert torch.equal(load_vectors(place, ["layer_15"])["layer_15"], wanted)


def test_vectors_of_another_method_take_the_place_of_those_before(
    hub: FakeHub, folder: Path, tmp_path: Path
):
    push(folder, REPO)
    hub.commit(REPO, {"notes.txt": b"mine"})
    (folder / "apply_caa.yaml").unlink()
    write_method_file(folder, "pca", {"layers": [15], "multipliers": [2.0]})
    push(folder, REPO)
    assert {name for name in last(hub) if "apply" in name} == {"apply_pca.yaml"}
    assert last(hub)["notes.txt"] == b"mine"
    pull(REPO, tmp_path / "back")
    assert (tmp_path / "back" / "apply_pca.yaml").is_file()


def test_vectors_that_were_there_keep_what_is_known_of_them(
    hub: FakeHub, folder: Path, tmp_path: Path
):
    push(folder, REPO)
    back = tmp_path / "back"
    save_vectors(back, {"layer_3": VECTOR}, {"layer_3": {"layer": 3}})
    before = read_metadata(back)["vectors"]["layer_3"]
    pull(REPO, back)
    entries = read_metadata(back)["vectors"]
    assert entries["layer_3"] == before
    assert entries["layer_15"]["hub"]["repo"] == REPO


@pytest.mark.parametrize("name", ["vectors.safetensors", "README.md", "apply_caa.yaml"])
def test_a_changed_file_is_refused_and_nothing_written(
    hub: FakeHub, folder: Path, tmp_path: Path, name: str
):
    push(folder, REPO)
    hub.commit(REPO, {name: last(hub)[name] + b" "})
    with pytest.raises(ValueError, match=rf"{name} is not the file that checksums.json describes"):
        pull(REPO, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_checksums_must_be_of_the_files_that_are_there(hub: FakeHub, folder: Path, tmp_path: Path):
    push(folder, REPO)
    sums = json.loads(last(hub)["checksums.json"])
    for wrong in ({**sums, "../../evil.yaml": "0" * 64}, {}, []):
        hub.commit(REPO, {"checksums.json": json.dumps(wrong).encode()})
        with pytest.raises(ValueError, match=r"checksums\.json is of other files"):
            pull(REPO, tmp_path / "back")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("exit 1",)


def test_a_pickle_is_not_even_fetched(hub: FakeHub, folder: Path, tmp_path: Path):
    hub.commit("me/bad", {"layer_15.pt": pickle.dumps(Bomb()), "README.md": b"# Bad"})
    with pytest.raises(ValueError, match=r"no checksums.json and no vectors.safetensors.*layer_15"):
        pull("me/bad", tmp_path / "back")
    push(folder, REPO)
    hub.commit(REPO, {"extra.pt": pickle.dumps(Bomb()), "run.py": b"exit(1)"})
    pull(REPO, tmp_path / "back")
    files = {path.name for path in (tmp_path / "back").iterdir()}
    assert not files & {"extra.pt", "run.py"}
    assert not list((tmp_path / "cache").rglob("extra.pt"))


def test_weights_that_are_no_safetensors_are_refused(hub: FakeHub, tmp_path: Path):
    data = pickle.dumps(Bomb())
    sums = json.dumps({"vectors.safetensors": sha256(data)}).encode()
    hub.commit(REPO, {"vectors.safetensors": data, "checksums.json": sums})
    with pytest.raises(ValueError, match="is not a safetensors file"):
        pull(REPO, tmp_path / "back")


def test_a_folder_without_metadata_is_not_published(hub: FakeHub, folder: Path):
    (folder / "metadata.json").unlink()
    with pytest.raises(ValueError, match=r"has no metadata.json, so that nothing is known"):
        push(folder, REPO)
    assert not hub.commits


@pytest.mark.parametrize(
    "repo, revision, message",
    [
        ("me/none", None, "cannot pull from me/none: .*404.*"),
        (REPO, "0" * 40, f"cannot pull from {REPO}: .*404.*"),
    ],
)
def test_what_is_not_there_is_one_line(
    hub: FakeHub, folder: Path, tmp_path: Path, repo: str, revision: str | None, message: str
):
    push(folder, REPO)
    with pytest.raises(OSError, match=message) as caught:
        pull(repo, tmp_path / "back", revision=revision)
    assert "\n" not in str(caught.value)


def test_without_the_hub_it_says_so(
    monkeypatch: pytest.MonkeyPatch, hub: FakeHub, folder: Path, tmp_path: Path
):
    nowhere = partial(huggingface_hub.HfApi, endpoint="http://127.0.0.1:9", token="t")
    monkeypatch.setattr(hub_module, "HfApi", nowhere)
    monkeypatch.setattr("time.sleep", lambda _: None)  # it tries again, later and later
    with pytest.raises(OSError, match="cannot pull from me/warm: "):
        pull(REPO, tmp_path / "back")


@pytest.mark.slow
def test_the_command_pushes_and_pulls(folder: Path, tmp_path: Path):
    with fake_hub() as hub:
        settings = {"HF_ENDPOINT": hub.root, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}

        def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-m", "steer.vectors", *arguments],
                cwd=ROOT,
                env={**os.environ, **settings, **more},
                capture_output=True,
                text=True,
                check=False,
            )

        refused = run("push", str(folder), REPO, HF_TOKEN="")
        assert refused.returncode == 1
        assert refused.stderr.startswith(f"error: cannot push to {REPO}: ")
        assert "is a token with that right in HF_TOKEN" in refused.stderr
        done = run("push", str(folder), REPO, HF_TOKEN="hf_secret")
        (commit,) = [name for name in hub.commits[REPO] if name in done.stdout]
        assert done.stdout == f"published: {REPO}, revision {commit}\n"
        back = str(tmp_path / "back")
        done = run("pull", REPO, back, "--revision", commit, HF_TOKEN="")
        assert done.stdout == f"written: {back} (layer_15), revision {commit}\n"
    assert torch.equal(load_vectors(back, ["layer_15"])["layer_15"], VECTOR)
