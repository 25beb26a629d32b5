"""The library of ready vectors: what it says of itself, and that what it says is so."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from steer.build import read_yaml
from steer.effect import Effect, divergence
from steer.library import steering_of
from steer.library.building import build
from steer.library.judging import verdict_of
from steer.library.keeping import Draft, keep, note_left_out, write_page
from steer.library.recipes import Recipe, Recipes
from steer.library.verifying import Verified, differences, verify
from steer.models import Add, EditLayer, SteeredModel
from steer.vectors import (
    Entry,
    Vectors,
    import_vectors,
    library_entry,
    list_library,
    load_vectors,
    read_metadata,
    save_vectors,
)
from steer.vectors.__main__ import main
from steer.vectors.cards import card, dose, table

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "vectors" / "library"
NEUTRAL = ROOT / "data" / "neutral" / "prompts.jsonl"
VERDICT: dict[str, Any] = {
    "works": True,
    "reasons": [],
    "effect": {"mean": 3.5, "low": 2.25, "high": 4.75, "pairs": 24},
    "wrong_way": 0.125,
    "reversed": {"mean": -2.0, "low": -3.0, "high": -1.0, "pairs": 24},
    "controls": {"random vectors": [0.5, -1.0, 9.0]},
    "control_pairs": 12,
    "on_control_pairs": 3.25,
    "damage": {
        "kl": 0.1234,
        "perplexity_ratio": 1.2,
        "repetition": 0.01,
        "refusal": -0.125,
        "prompts": 8,
        "harmless": 4,
    },
}
VALUES = {"positions": "all", "layers": [2], "multipliers": [0.17], "strength": "relative"}
ENTRIES = [pytest.param(entry, id=entry.name) for entry in list_library(LIBRARY)]


def draft(value: float = 1.0, **verdict: Any) -> Draft:
    about = {"layer": 2, "method": "caa", "model": {"id": "tiny"}}
    vectors = Vectors({"layer_2": torch.full((4,), value)}, {"layer_2": about})
    return Draft("caa", "caa_vector", vectors, VALUES, {**VERDICT, **verdict})


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Two vectors of one model, and one of another."""
    for place in ("tiny/warm", "tiny/cold", "big/cold"):
        keep(draft(), tmp_path / place, {"does": f"{place} answers", "licence": "MIT"})
    return tmp_path


def told(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


# ---- listing and showing ------------------------------------------------------------------------


def test_listing_and_showing_need_no_torch():
    code = (
        "import sys\n"
        "from steer.vectors.__main__ import main\n"
        "main(['list']); main(['list', '--json']); main(['show', 'sentiment'])\n"
        "sys.exit(len({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "# sentiment" in done.stdout


def test_a_library_is_listed_by_name(library: Path, capsys: pytest.CaptureFixture):
    names = [(entry.name, entry.model, entry.layers) for entry in list_library(library)]
    assert names == [("cold", "tiny", [2]), ("cold", "tiny", [2]), ("warm", "tiny", [2])]
    lines = told(capsys, "list", "--library", library).splitlines()
    assert lines[0].strip() == "tiny"
    assert len(lines) == 5
    assert re.search(r"warm +caa +2 +\+3\.50 \[\+2\.25, \+4\.75\] +0\.12", lines[4])


def test_an_entry_is_found_by_its_name_its_model_or_its_folder(library: Path):
    place = library / "tiny" / "warm" / "caa_vector"
    for name in ("warm", "tiny/warm", str(place)):
        found = library_entry(name, library)
        assert found.folder == place
        assert torch.equal(found.load()["layer_2"], torch.ones(4))
        assert found.load().about["layer_2"]["verdict"]["effect"]["mean"] == 3.5


def test_vectors_of_two_methods_are_told_apart(library: Path, capsys: pytest.CaptureFixture):
    place = library / "tiny" / "warm"
    shutil.copytree(place / "caa_vector", place / "sta_vector")
    with pytest.raises(ValueError, match="may be any of tiny/warm/caa_vector, tiny/warm/sta_vect"):
        library_entry("tiny/warm", library)
    assert library_entry("tiny/warm/sta_vector", library).folder == place / "sta_vector"
    listed = json.loads(told(capsys, "list", "--json", "--library", library))
    names = ["big/cold", "tiny/cold", "tiny/warm/caa_vector", "tiny/warm/sta_vector"]
    assert sorted(listed) == names
    assert listed[names[3]]["folder"] == str(place / "sta_vector")


@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["verify"]])
def test_a_folder_that_is_no_library_is_said(
    library: Path, capsys: pytest.CaptureFixture, command: list[str]
):
    assert main([*command, "--library", str(library / "tiny")]) == 1
    said, told = capsys.readouterr().err, "has no vectors in folders <model>/<name>/<method>_vec"
    assert f"error: {library / 'tiny'} {told}" in said


def test_a_name_that_leads_nowhere_is_refused(library: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="unknown vector 'wram'; did you mean 'warm'"):
        library_entry("wram", library)
    with pytest.raises(ValueError, match="'cold' may be any of big/cold, tiny/cold"):
        library_entry("cold", library)
    with pytest.raises(ValueError, match=r"has no metadata\.json.*steer\.vectors import FILE\.pt"):
        library_entry(str(tmp_path))


def test_the_card_has_the_figures(library: Path, capsys: pytest.CaptureFixture):
    shown = told(capsys, "show", "warm", "--library", library)
    place = library / "tiny" / "warm" / "caa_vector"
    assert shown == f"{(place / 'README.md').read_text()}\nfolder: {place}\n"
    for line in (
        "tiny/warm answers",
        "| dose | 0.17 of the residual norm |",
        "| verdict | works |",
        "| effect on 24 unseen pairs | +3.50 [+2.25, +4.75] nats a pair |",
        "| pairs moved the wrong way | 12% |",
        "| larger than random vectors | 2 of 3 (at most +9.00 where it has +3.25) |",
        "| KL on neutral text | 0.123 nats a token |",
        "| perplexity of answers | x 1.20 |",
        "| harmless prompts refused | -12% |",
        # Outside the project, where it is.
        f'"apply_steer_hparam_paths=[{place}/apply_caa.yaml]"',
        f'"steer_vector_load_dir=[{place}]"',
    ):
        assert line in shown


def test_a_vector_that_nobody_judged_has_a_card_that_says_so(tmp_path: Path):
    save_vectors(tmp_path, {"layer_1": torch.ones(4)}, {})
    assert "| verdict | nobody has judged it" in card(Entry.of(tmp_path, "mine"))
    assert dose({"multipliers": [1.0, -2.5]}) == "multiplier 1, -2.5"


def test_what_recommends_no_dose_does_not_steer(tmp_path: Path, model: SteeredModel):
    save_vectors(tmp_path, {"layer_1": torch.ones(16)}, {})
    with pytest.raises(ValueError, match=r"recommends no dose: search for one"):
        steering_of(Entry.of(tmp_path, "mine"), model)


def test_a_vector_steers_at_its_dose(tmp_path: Path, model: SteeredModel):
    values = {"layers": [1], "multipliers": [0.25], "strength": "relative"}
    about = {"method": "caa", "layer": 1, "residual_norm": 8.0, "recommended": values}
    save_vectors(tmp_path, {"layer_1": torch.full((16,), 3.0)}, {"layer_1": about})
    (step,) = steering_of(Entry.of(tmp_path, "mine"), model)
    # A quarter of 8, along a vector of sixteen equal numbers.
    assert torch.allclose(step.edit.change(), torch.full((16,), 0.5))
    assert step.layer == 1


# ---- keeping ------------------------------------------------------------------------------------


def test_a_vector_takes_the_place_of_the_one_before(library: Path):
    place = library / "tiny" / "warm"
    (place / "caa_vector" / "layer_7.pt").write_bytes(b"of an older build")
    keep(draft(2.0), place, {"does": "anew"})
    files = {path.name for path in (place / "caa_vector").iterdir() if path.name[0] != "."}
    assert files == {"layer_2.pt", "metadata.json", "apply_caa.yaml", "README.md"}
    assert float(load_vectors(place / "caa_vector", ["layer_2"])["layer_2"][0]) == 2.0
    assert read_yaml(place / "caa_vector" / "apply_caa.yaml", "method file") == {
        "alg_name": "caa",
        **VALUES,
    }
    assert sorted(path.name for path in place.parent.iterdir()) == ["cold", "warm"]


def test_what_does_not_work_stands_on_the_page_with_its_reasons(library: Path):
    recipe = Recipe(does="Nothing at all", data=["sentiment"])
    note_left_out(library, "idle", recipe, draft(works=False, reasons=["no effect"]))
    write_page(library)
    page = (library / "README.md").read_text(encoding="utf-8")
    assert "- **idle** (Nothing at all): no effect\n" in page
    assert table(list_library(library)) in page
    note_left_out(library, "idle", recipe, draft())
    write_page(library)
    assert "idle" not in (library / "README.md").read_text(encoding="utf-8")


def test_recipes_are_checked(tmp_path: Path):
    (tmp_path / "library.yaml").write_text(
        "licence: MIT\nsearch: {}\nvectors:\n  a: {does: b, data: [c], metod: caa}\n"
    )
    with pytest.raises(ValueError, match=r"library\.yaml: a: unknown key 'metod'; did you mean"):
        Recipes.read(tmp_path).chosen()
    with pytest.raises(ValueError, match="unknown vector 'b'"):
        Recipes.read(tmp_path).chosen(["b"])


LIMIT = 0.05
TINY = """
model_name_or_path: {model}
device: cpu
dtype: float32
licence: MIT
search:
  methods: [caa]
  layers: [0, 1]
  doses: [0.2, 0.5]
  max_kl: {limit}
  max_perplexity_ratio: 99.0
  max_repetition: 1.0
  max_new_tokens: 4
vectors:
  learnt: {{does: "Warm answers", data: [sentiment]}}
  merged:
    does: Two at once
    data: [sentiment, dogs]
    method: merge_vector
    hparams: {{vector_paths: [{given}], layers: [1], method: linear, weights: [1.0]}}
    multipliers: [0.05, 200.0, 0.1]
    strength: absolute
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A library of a tiny model, and what building it said, in `said.txt`."""
    place = tmp_path_factory.mktemp("library")
    given = place / "given"
    save_vectors(given, {"layer_1": torch.linspace(-1, 1, 16)}, {"layer_1": {"layer": 1}})
    recipes = TINY.format(model=tiny_folder, given=given, limit=LIMIT)
    (place / "library.yaml").write_text(recipes, encoding="utf-8")
    (place / "said.txt").write_text("\n".join(build(place)), encoding="utf-8")
    return place


def test_what_is_built_is_kept_where_it_works_and_else_named(built: Path):
    kept = {entry.name: entry for entry in list_library(built)}
    left_out = json.loads((built / "left_out.json").read_text(encoding="utf-8"))
    assert kept.keys() | left_out.keys() == {"learnt", "merged"}
    assert not kept.keys() & left_out.keys()
    for line in (built / "said.txt").read_text(encoding="utf-8").splitlines():
        name = line.split(":")[0]
        assert line.endswith(", works") == (name in kept)
        assert name in kept or left_out[name]["reasons"][0] in line


def test_the_strongest_dose_within_the_limit_is_taken(built: Path):
    model = Recipes.read(built).source.load()
    texts = [json.loads(line)["text"] for line in NEUTRAL.read_text().splitlines()][::2]
    vector = load_vectors(built / "given", ["layer_1"])["layer_1"]
    costs = {
        m: divergence(model, texts, [EditLayer(1, Add(vector, m))]) for m in (0.05, 0.1, 200.0)
    }
    assert costs[0.1] < LIMIT < costs[200.0]
    left_out = json.loads((built / "left_out.json").read_text(encoding="utf-8"))
    assert left_out["merged"]["dose"]["multipliers"] == [0.1]


# ---- what ships ---------------------------------------------------------------------------------


def test_every_recipe_is_in_the_library_or_has_its_reason():
    left_out = json.loads((LIBRARY / "left_out.json").read_text(encoding="utf-8"))
    names = {entry.name for entry in list_library(LIBRARY)}
    assert not names & left_out.keys()
    assert names | left_out.keys() == set(Recipes.read(LIBRARY).vectors)
    assert all(one["reasons"] for one in left_out.values())


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_shipped_vector_is_whole_and_works(entry: Entry):
    (vector,) = entry.load().values()
    assert vector.shape == (576,)
    verdict = entry.verdict
    assert verdict["works"]
    assert verdict["effect"]["low"] > 0
    assert len(verdict["controls"]["random vectors"]) == 20
    assert max(verdict["controls"]["random vectors"]) < verdict["on_control_pairs"]
    assert verdict["damage"]["kl"] <= 0.3
    assert (entry.folder / "README.md").read_text(encoding="utf-8") == card(entry)


def test_the_pages_show_what_the_library_has():
    shown = table(list_library(LIBRARY))
    assert shown in (LIBRARY / "README.md").read_text(encoding="utf-8")
    assert shown in (ROOT / "docs" / "vectors.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "found, kl, problem",
    [
        ({}, 0.12, None),
        ({"mean": 4.7, "low": 3.0}, 0.1295, None),
        ({"mean": 4.8}, 0.12, r"the verdict says \+3\.50 \[\+2\.25, \+4\.75\]"),
        ({"mean": -3.5, "low": -4.0}, 0.12, "the verdict says .*not clearly above 0"),
        ({"low": -0.1}, 0.12, "the effect is not clearly above 0"),
        ({"controls": [0.0, 3.3]}, 0.12, r"a random vector does \+3\.30"),
        ({}, 0.14, r"KL was 0\.123"),
    ],
)
def test_a_verdict_is_borne_out_or_not(found: dict[str, Any], kl: float, problem: str | None):
    usual = {"mean": 3.4, "low": 2.2, "high": 4.7, "pairs": 24, "controls": [0.5, 3.1]}
    more = {"control_pairs": 12, "on_control_pairs": 3.2, "source": "here"}
    effect = Effect(**{**usual, **more, **found})
    verified = Verified(effect, kl, differences(VERDICT, effect, kl))
    assert verified.reproduced == (problem is None)
    outcome = "reproduced$" if problem is None else f"NOT reproduced: {problem}"
    assert re.search(f"KL {kl:.3f}: {outcome}", str(verified))


@pytest.mark.parametrize(
    "controls, reason",
    [
        ([0.5, 1.99], None),
        ([0.5, 2.0], "a random vector does +2.00"),
        ([2.05, 0.5], "a random vector does +2.05"),
        ([2.5, 0.5], "1 of 2 controls are larger (random vectors): at most +2.50 nats"),
    ],
)
def test_what_is_kept_for_its_controls_is_borne_out_by_them(
    controls: list[float], reason: str | None
):
    more = {"control_pairs": 12, "on_control_pairs": 2.0, "source": "here"}
    effect = Effect(mean=3.4, low=2.3, high=4.7, pairs=24, controls=controls, **more)
    kept = verdict_of(effect).reasons
    assert (kept == []) == (differences(VERDICT, effect, 0.12) == []) == (reason is None)
    assert all(one.startswith(str(reason)) for one in kept)
    assert len(kept) <= 1


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"verdict": VERDICT},
        {"verdict": {**VERDICT, "damage": None}, "held_out": [{"name": "sentiment"}]},
    ],
)
def test_only_what_build_made_can_be_verified(tmp_path: Path, about: dict[str, Any]):
    save_vectors(tmp_path, {"layer_1": torch.ones(4)}, {"layer_1": {"layer": 1, **about}})
    with pytest.raises(ValueError, match=r"mine has no verdict that can be measured anew: .*build"):
        verify(Entry.of(tmp_path, "mine"), LIBRARY)


def test_what_cannot_be_verified_does_not_end_the_command(
    library: Path, capsys: pytest.CaptureFixture
):
    assert main(["verify", "--library", str(library)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["cold", "cold", "warm"]
    assert all(line.startswith("error: ") for line in said)


@pytest.mark.slow
def test_the_command_reproduces_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert re.search(
        r"20 of 20 random vectors.*: reproduced\n$", told(capsys, "verify", "sentiment")
    )
    entry = library_entry("sentiment", LIBRARY)
    copy = tmp_path / "sentiment"
    shutil.copytree(entry.folder, copy)
    (file,) = copy.glob("*.pt")
    file.write_bytes(file.read_bytes() + b"x")
    capsys.readouterr()
    assert main(["verify", str(copy)]) == 1
    assert "SHA-256 differs" in capsys.readouterr().err


# ---- EasyEdit2's files --------------------------------------------------------------------------


def easyedit2(path: Path) -> torch.Tensor:
    """A file as EasyEdit2 publishes them: a bare tensor in bfloat16, 3584 wide."""
    vector = torch.randn(3584, generator=torch.Generator().manual_seed(0)).bfloat16()
    path.parent.mkdir(parents=True)
    torch.save(vector, path)
    return vector


@pytest.mark.parametrize(
    "file, arguments",
    [
        ("demo_vector/personality/personality.pt", ["--layer", "24"]),
        ("caa_vector/layer_24.pt", []),
        ("merge_vector/layer_24_merged_vector.pt", []),
    ],
)
def test_published_vectors_of_easyedit2_are_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture, file: str, arguments: list[str]
):
    vector = easyedit2(tmp_path / file)
    told(capsys, "import", tmp_path / file, tmp_path / "out", *arguments)
    found = load_vectors(tmp_path / "out", ["layer_24"])
    assert found["layer_24"].dtype == torch.bfloat16
    assert torch.equal(found["layer_24"], vector)
    assert read_metadata(tmp_path / "out")["vectors"]["layer_24"]["layer"] == 24


def test_published_folders_of_easyedit2_load_as_they_are(tmp_path: Path):
    vector = easyedit2(tmp_path / "demo_vector/personality/personality.pt")
    folder = tmp_path / "demo_vector" / "personality"
    assert torch.equal(load_vectors(folder, ["personality"])["personality"], vector)


def test_a_tensor_of_no_known_layer_or_shape_is_refused(tmp_path: Path):
    easyedit2(tmp_path / "a" / "personality.pt")
    with pytest.raises(ValueError, match=r"does not say which decoder block.* --layer N"):
        import_vectors(tmp_path / "a" / "personality.pt", tmp_path / "out")
    torch.save(torch.ones(2, 3), tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"must hold one vector: got the shape \[2, 3\]"):
        import_vectors(tmp_path / "wide.pt", tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
