"""A whole search on a tiny model: what it says is what slow ways of saying it give."""

import io
import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_likelihood import slow_row
from tiny import steered, tiny_config

from steer import BaseVectorApplier
from steer.effect import pairs_of
from steer.models import ChatFormat, SteeredModel
from steer.search.bake_off import bake_off, bake_off_parts, rows, write_bake_off_page
from steer.search.page import write_page
from steer.search.passes import Sweep
from steer.search.running import run
from steer.search.searching import Data, search
from steer.search.settings import SearchSettings
from steer.search.splitting import split
from steer.search.terminal import parts
from steer.vectors import read_metadata

LIMITS = {"max_kl": 9.0, "max_perplexity_ratio": 1e6, "max_repetition": 1.0, "max_refusal": 1.0}


def pairs(number: int):
    dice = random.Random(0)

    def letters(some: str) -> str:
        return "".join(dice.choice(some) for _ in range(dice.randint(3, 6)))

    return [
        {"question": f"q{n}", "matching": letters("abc"), "not_matching": letters("xyz")}
        for n in range(number)
    ]


@pytest.fixture(scope="module")
def tiny() -> SteeredModel:
    """What it reads makes what it says likelier: its head is its embedding."""
    return steered(tiny_config("llama", hidden_size=64, tie_word_embeddings=True))


def settings(folder: Path, **more) -> SearchSettings:
    given = {"steer_train_dataset": ["mine"], "output_dir": str(folder), "device": "cpu"}
    limits = {"methods": ["caa"], "layers": [0, 1], "doses": [0.2, 0.5], "max_new_tokens": 4}
    return SearchSettings.of(given | LIMITS | limits | {"budget_tokens": 10**7} | more)[0]


def data(some=None) -> Data:
    some = pairs(40) if some is None else some
    return Data("mine", "mine", some, [], [row["question"] for row in some])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny: SteeredModel):
    folder = tmp_path_factory.mktemp("search")
    return search(settings(folder), data(), tiny), folder / "mine"


@pytest.mark.slow
def test_everything_is_tried_and_the_parts_are_apart(found):
    result, folder = found
    assert result == json.loads((folder / "search.json").read_text(encoding="utf-8"))
    names = {one["name"] for one in result["tried"]}
    assert names == {f"caa, layer {n}, dose {dose:g}" for n in (0, 1) for dose in (0.2, 0.5)}
    assert result["data"] == {
        "train": 20,
        "select": 10,
        "verdict": 10,
        "source": "part of the data",
    }
    assert result["budget"]["unit"] == "tokens"
    assert 0 < result["budget"]["spent"] < 10**7
    assert not (folder / "search_partial.jsonl").exists()


@pytest.mark.slow
def test_the_effect_is_that_of_the_slow_loop_with_the_vector_that_was_written(found, tiny):
    result, _ = found
    pick, splits = result["pick"], split(pairs(40), [], seed=42)
    vector = torch.load(Path(result["folder"], f"layer_{pick['layer']}.pt"))
    about = read_metadata(result["folder"])["vectors"][f"layer_{pick['layer']}"]
    added = vector * pick["dose"] * about["residual_norm"] / vector.norm()
    changes = []
    for pair in pairs_of(tiny, splits.verdict, ChatFormat()):
        margins = []
        for edits in ({pick["layer"]: lambda hidden: hidden + added}, {}):
            sides = [
                float(slow_row(tiny, pair.prompt, side, edits).sum())
                for side in (pair.matching, pair.not_matching)
            ]
            margins.append(sides[0] - sides[1])
        changes.append(margins[0] - margins[1])
    effect = result["verdict"]["effect"]
    assert effect["mean"] == pytest.approx(sum(changes) / len(changes), rel=1e-3)
    assert effect["low"] < effect["mean"] < effect["high"]
    wrong = sum(change < 0 for change in changes) / len(changes)
    assert result["verdict"]["wrong_way"] == pytest.approx(wrong)


@pytest.mark.slow
def test_what_was_learnt_is_learnt_from_both_parts_and_says_so(found):
    result, _ = found
    entry = read_metadata(result["folder"])["vectors"][f"layer_{result['pick']['layer']}"]
    assert entry["data"]["rows"] == 30
    assert entry["recommended"] == result["pick"]["values"]
    assert entry["verdict"] == result["verdict"]


@pytest.mark.slow
def test_a_later_search_leaves_the_verdict_on_other_vectors(tiny, tmp_path: Path):
    one, other = (search(settings(tmp_path, layers=[n], doses=[0.5]), data(), tiny) for n in (0, 1))
    assert one["folder"] == other["folder"]
    entries = read_metadata(one["folder"])["vectors"]
    assert entries["layer_0"]["recommended"] == one["pick"]["values"]
    assert entries["layer_1"]["recommended"] == other["pick"]["values"]
    assert one["verdict"] != other["verdict"] == entries["layer_1"]["verdict"]
    assert entries["layer_0"]["verdict"] == one["verdict"]


@pytest.mark.slow
def test_the_folder_steers_as_the_search_did(found, tiny):
    result, _ = found
    pick, folder = result["pick"], result["folder"]
    config = {
        "device": "cpu",
        "apply_steer_hparam_paths": [f"{folder}/apply_caa.yaml"],
        "steer_vector_load_dir": [folder],
        "generation_params": {"max_new_tokens": 4, "do_sample": False},
    }
    applier = BaseVectorApplier(config, tiny)
    applier.apply_vectors()
    (step,) = applier.model.interventions()
    about = read_metadata(folder)["vectors"][f"layer_{pick['layer']}"]
    assert step.layer == pick["layer"]
    assert float(step.edit.change().norm()) == pytest.approx(pick["dose"] * about["residual_norm"])
    shown = result["examples"][0]
    (record,) = applier.generate([{"input": shown["input"]}], save_results=False)["data"]
    assert record["pred"][0] == shown["steered"]


@pytest.mark.slow
def test_controls_are_run_and_the_other_way_is_the_other_way(found):
    verdict = found[0]["verdict"]
    assert {kind: len(values) for kind, values in verdict["controls"].items()} == {
        "random vectors": 20,
        "shuffled labels": 20,
    }
    assert verdict["reversed"]["mean"] < 0 < verdict["effect"]["low"]
    assert max(map(max, verdict["controls"].values())) < verdict["on_control_pairs"]
    assert (verdict["works"], verdict["reasons"]) == (True, [])


@pytest.mark.slow
def test_each_tokens_shift_is_that_of_the_slow_loop(found, tiny):
    result, _ = found
    pick = result["pick"]
    vector = torch.load(Path(result["folder"], f"layer_{pick['layer']}.pt"))
    about = read_metadata(result["folder"])["vectors"][f"layer_{pick['layer']}"]
    added = vector * pick["dose"] * about["residual_norm"] / vector.norm()
    for example in result["examples"]:
        prompt = tiny.tokenizer(example["input"])["input_ids"]
        texts = [token["text"] for token in example["tokens"]]
        ids = tiny.tokenizer("".join(texts))["input_ids"]
        if len(ids) != len(texts):
            continue  # bytes that are no characters
        for key, edits in (
            ("steered", {pick["layer"]: lambda hidden: hidden + added}),
            ("unsteered", {}),
        ):
            slow = slow_row(tiny, prompt, ids, edits)
            found_here = torch.tensor([token[key] for token in example["tokens"]])
            torch.testing.assert_close(found_here, slow, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_labels_that_say_nothing_have_no_setting_that_works(tiny, tmp_path: Path):
    dice = random.Random(5)
    turned = [
        {**row, "matching": row["not_matching"], "not_matching": row["matching"]}
        if dice.random() < 0.5
        else row
        for row in pairs(60)
    ]
    result = search(settings(tmp_path), data(turned), tiny)
    assert not result["verdict"]["works"]
    assert result["verdict"]["reasons"]


@pytest.mark.slow
def test_a_search_that_is_broken_off_goes_on_where_it_was(found, tmp_path: Path, tiny, monkeypatch):
    runs: list[int] = []
    original = Sweep.run

    def counted(self, chosen, figure):
        runs.append(len(chosen))
        if len(runs) == 4:
            raise KeyboardInterrupt
        return original(self, chosen, figure)

    monkeypatch.setattr(Sweep, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        search(settings(tmp_path), data(), tiny)
    assert (tmp_path / "mine" / "search_partial.jsonl").is_file()
    result = search(settings(tmp_path, resume=True), data(), tiny)
    for key in ("tried", "finalists", "pick", "examples"):
        assert result[key] == found[0][key]
    assert result["verdict"]["effect"] == found[0]["verdict"]["effect"]
    whole = len(runs)
    again = search(settings(tmp_path, resume=True), data(), tiny)
    assert (again, len(runs)) == (result, whole)
    (tmp_path / "mine" / "search_partial.jsonl").write_text('{"fingerprint": "x"}\n')
    with pytest.raises(ValueError, match="cannot resume"):
        search(settings(tmp_path, resume=True), data(), tiny)


@pytest.mark.slow
def test_where_no_setting_is_within_the_limits_nothing_is_written(tiny, tmp_path: Path):
    result = search(settings(tmp_path, max_kl=1e-9), data(), tiny)
    assert (result["pick"], result["folder"], result["verdict"]["works"]) == (None, None, False)
    assert result["verdict"]["reasons"][0].startswith("every setting costs more than the limit")
    assert not (tmp_path / "mine" / "vectors").exists()
    page = write_page(result, tmp_path / "mine").read_text(encoding="utf-8")
    assert "No setting works" in page


def test_a_search_without_prompts_to_answer_is_refused(tiny, tmp_path: Path):
    rows = [{key: row[key] for key in ("matching", "not_matching")} for row in pairs(40)]
    unasked = Data.of(settings(tmp_path), "mine", "mine", rows)
    with pytest.raises(ValueError, match=r"mine: no prompts to answer.*give generation_data"):
        search(settings(tmp_path), unasked, tiny)
    assert not list(tmp_path.iterdir())


# ---- the report ----


@pytest.mark.slow
def test_the_page_needs_nothing_else_and_shows_what_was_found(found):
    result, folder = found
    path = write_page(result, folder)
    page = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 3_000_000
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#|[\w./]+\.html)[^\"']+", page)
    assert not re.findall(r"@import|url\((?!#)", page)
    assert f"dose {result['pick']['dose']:g}" in page
    assert f"{result['verdict']['effect']['mean']:+.2f}" in page
    assert page.count("<svg") == 3
    ids = re.findall(r'\bid="([^"]+)"', page)
    defined = [
        name
        for name in ids
        if not re.match(
            r"(figure|axes|patch|line2d|text|matplotlib|xtick|ytick|legend|PathCollection|LineCollection|QuadMesh)",
            name,
        )
    ]
    assert len(defined) == len(set(defined))
    for name in ("pareto", "heat_map", "controls"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_what_a_model_says_is_text_on_the_page(found, tmp_path: Path):
    result = json.loads(json.dumps(found[0]))
    result["examples"][0]["unsteered"] = "<script>alert(1)</script>"
    page = write_page(result, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.slow
def test_without_matplotlib_the_page_says_so(found, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("steer.search.page.can_draw", lambda: False)
    page = write_page(found[0], tmp_path).read_text(encoding="utf-8")
    assert "<svg" not in page
    assert "matplotlib is not installed" in page


@pytest.mark.slow
def test_the_terminal_shows_the_same(found):
    console = Console(width=160, record=True, file=io.StringIO())
    for part in parts(found[0]):
        console.print(part, markup=False)
    text = console.export_text()
    assert f"{found[0]['verdict']['effect']['mean']:+.2f}" in text
    assert found[0]["examples"][0]["input"] in text
    assert "python -m steer.search" in text


# ---- the command, and the bake-off ----


@pytest.mark.slow
def test_the_command_searches_a_file_and_says_where_everything_is(
    tiny_folder: Path, tmp_path: Path
):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs(40)), encoding="utf-8")
    given = settings(tmp_path / "out")
    config = {
        name: getattr(given, name) for name in ("methods", "layers", "doses", "device", *LIMITS)
    }
    config |= {
        "model_name_or_path": str(tiny_folder),
        "steer_train_dataset": str(file),
        "output_dir": str(tmp_path / "out"),
        "budget_tokens": 10**7,
        "max_new_tokens": 4,
    }
    shown = [str(part) for part in run(config)]
    page = tmp_path / "out" / "mine" / "report.html"
    assert f"written: {page}" in shown
    assert f"steer_train_dataset={file}" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_methods_are_searched_apart_and_one_that_fails_is_named(
    found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Done:
        def __init__(self, code: int, said: str = "") -> None:
            self.returncode, self.stderr = code, said

    def searched(command, **_):
        config = Path(command[4], f"{command[6]}.yaml").read_text(encoding="utf-8")
        method = re.search(r"methods:\n- (\w+)", config)[1]
        assert "budget_tokens: 3333333" in config
        if method == "sta":
            return Done(1, "noise\nerror: no sparse autoencoder for this model\nbye")
        if method == "pca":
            return Done(-9, "reading: 20%")
        place = Path(re.search(r"output_dir: (.+)", config)[1], "mine")
        place.mkdir(parents=True)
        (place / "search.json").write_text(json.dumps(found[0]), encoding="utf-8")
        return Done(0)

    monkeypatch.setattr("steer.search.bake_off.subprocess.run", searched)
    given = settings(tmp_path, methods=["caa", "sta", "pca"])
    results = bake_off(given, "mine", "mine", tmp_path)
    one, other, killed = rows(results)
    assert killed["verdict"] == "ended by signal 9 (out of memory?)"
    assert one["effect (nats a pair)"].startswith(f"{found[0]['verdict']['effect']['mean']:+.2f}")
    assert other == dict.fromkeys(other, "") | {
        "method": "sta",
        "verdict": "no sparse autoencoder for this model",
    }
    console = Console(width=80, record=True)
    console.print(*bake_off_parts(results))
    printed = console.export_text()
    assert "…" not in printed
    assert "sta: no sparse autoencoder for this model" in printed
    page = write_bake_off_page(results, tmp_path).read_text(encoding="utf-8")
    assert 'href="caa/mine/report.html"' in page
    assert (tmp_path / "caa" / "mine" / "report.html").is_file()
    assert json.loads((tmp_path / "bake_off.json").read_text(encoding="utf-8")) == results


def test_held_out_pairs_and_prompts_come_from_the_data_sets_own_files():
    given = SearchSettings.of({"steer_train_dataset": ["sentiment"], "device": "cpu"})[0]
    loaded = Data.of(given, "sentiment", "sentiment", pairs(3))
    assert len(loaded.held_out) == 24
    assert loaded.inputs[0] == "Share your view of the concert in the park."
    # Its own file has no prompts for a concept alone.
    concept = Data.of(replace(given, data_source="sample"), "axbench/3", "axbench/3", pairs(3))
    assert concept.inputs[0] == "Name three uses for an old glass jar."
    own = Data.of(given, "mine", "mine", pairs(3))
    assert (own.held_out, own.inputs) == ([], ["q0", "q1", "q2"])
