"""Detectors: thresholds and rates worked by hand, and gates in a run's settings."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from desk import Desk
from tiny import full_logits, ids_of, steered, tiny_config
from torch import Tensor

from steer.gates import calibrate_folder, detector_of, make_detector, threshold_at
from steer.gates.__main__ import main
from steer.gates.scores import token_scores
from steer.methods.activation_addition import AddVectors
from steer.methods.lm_steer import ApplyLMSteer
from steer.models import ChatFormat, Gate, Intervention, SteeredModel
from steer.models.facts import model_facts
from steer.passages import Passage
from steer.vectors import load_vectors, read_metadata, save_vectors

VECTOR = torch.randn(16, generator=torch.Generator().manual_seed(2))
# Inputs of two kinds that any model's activations tell apart.
ON = [{"input": f"aaaa aaa {n}"} for n in range(8)]
OFF = [{"input": f"What is {n}?"} for n in range(8)]


@pytest.fixture
def tiny() -> SteeredModel:
    return steered(tiny_config("llama"))


# ---- numbers worked by hand ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rate, threshold",
    [
        (0.0, 0.9),  # above 0.9 there is none
        (0.19, 0.9),  # one of five would be 0.2
        (0.2, 0.7),  # 0.9 alone is above 0.7
        (0.5, 0.5),  # two of five are above 0.5
        (0.99, 0.1),
    ],
)
def test_at_most_the_wanted_share_of_negatives_is_above_the_threshold(
    rate: float, threshold: float
):
    negatives = torch.tensor([0.1, 0.9, 0.3, 0.7, 0.5])
    assert threshold_at(negatives, rate) == pytest.approx(threshold)
    assert (negatives > threshold_at(negatives, rate)).double().mean() <= rate


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_that_is_none_is_refused(rate: float):
    with pytest.raises(ValueError, match="false-positive rate from 0 to below 1"):
        threshold_at(torch.zeros(3), rate)


@pytest.mark.slow
def test_area_and_rates_are_those_of_counting():
    # Row means 3, 1 against 2, 0: of four pairs three are the right way round.
    on = [torch.tensor([4.0, 2.0]), torch.tensor([1.0])]
    off = [torch.tensor([2.0, 2.0, 2.0]), torch.tensor([0.0])]
    found = detector_of(on, off, 0.0)
    assert found["row"]["auroc"] == 3 / 4
    assert found["row"]["threshold"] == 2.0
    assert (found["row"]["true_positive_rate"], found["row"]["false_positive_rate"]) == (0.5, 0.0)
    # Tokens 4, 2, 1 against 2, 2, 2, 0; a tie is half: (4 + 2.5 + 1) of 12.
    assert found["token"]["auroc"] == pytest.approx(7.5 / 12)
    assert found["token"]["true_positive_rate"] == pytest.approx(1 / 3)
    assert (found["token"]["on"], found["token"]["off"]) == (3, 4)


def test_token_scores_are_cosines_of_rows_read_alone(tiny: SteeredModel):
    passages = [Passage(ids, 1, len(ids) - 1) for ids in ids_of([7, 3, 12, 5])]
    found = token_scores(tiny, passages, {1: VECTOR}, batch_size=3)[1]
    for passage, scores in zip(passages, found, strict=True):
        seen: list[Tensor] = []
        full_logits(tiny, passage.ids, {1: lambda h, seen=seen: seen.append(h) or h})
        hidden = seen[0][1:-1]
        truth = (hidden @ VECTOR) / (hidden.norm(dim=-1) * VECTOR.norm())
        assert torch.allclose(scores, truth, atol=1e-5)


# ---- folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mean", "probe"])
def test_a_detector_is_made_of_one_half_and_calibrated_on_the_other(
    tiny: SteeredModel, tmp_path: Path, kind: str
):
    options: dict[str, Any] = {"layers": [0, 2], "kind": kind, "rate": 0.25}
    found = make_detector(tiny, ChatFormat(), ON, OFF, tmp_path, **options)
    assert found["layer_2"]["row"]["auroc"] == 1.0
    assert (found["layer_2"]["row"]["on"], found["layer_2"]["row"]["off"]) == (4, 4)
    vectors = load_vectors(tmp_path, ["layer_2"])
    changed = [{"input": "z" * 9} if n % 2 else row for n, row in enumerate(ON)]
    make_detector(tiny, ChatFormat(), changed, OFF, tmp_path / "other", **options)
    assert torch.equal(vectors["layer_2"], load_vectors(tmp_path / "other", ["layer_2"])["layer_2"])
    entries = read_metadata(tmp_path)["vectors"]  # type: ignore[index]
    assert entries["layer_2"]["detector"]["row"]["auroc"] == 1.0
    assert entries["layer_2"]["detector"]["read"] == "prompts"
    # The first vectors may have been made of what is now held out.
    options["layers"] = [1]
    assert make_detector(tiny, ChatFormat(), ON[::-1], OFF, tmp_path, **options).keys() == {
        "layer_1"
    }
    assert read_metadata(tmp_path)["vectors"]["layer_2"] == entries["layer_2"]  # type: ignore[index]


def test_calibrating_keeps_vectors_and_what_is_said_of_them(tiny: SteeredModel, tmp_path: Path):
    save_vectors(tmp_path, {"layer_1": VECTOR}, {"layer_1": {"layer": 1, "method": "caa"}})
    before = read_metadata(tmp_path)["vectors"]["layer_1"]  # type: ignore[index]
    on, off = ([Passage(ids, 0, len(ids)) for ids in ids_of([5] * 6, seed)] for seed in (1, 2))
    found = calibrate_folder(tiny, tmp_path, on, off, 0.5)
    after = read_metadata(tmp_path)["vectors"]["layer_1"]  # type: ignore[index]
    assert after == before | {"detector": found["layer_1"]}
    assert torch.equal(load_vectors(tmp_path, ["layer_1"])["layer_1"], VECTOR)


def test_too_few_inputs_are_refused(tiny: SteeredModel, tmp_path: Path):
    with pytest.raises(ValueError, match="4 inputs or more on each side: got 3 on and 8 off"):
        make_detector(tiny, ChatFormat(), ON[:3], OFF, tmp_path, layers=[1])


# ---- settings -----------------------------------------------------------------------------------


def detectors(tiny: SteeredModel, folder: Path, areas: dict[int, float], **more: Any) -> str:
    """A folder of detectors of which one is best."""
    entries = {}
    for layer, area in areas.items():
        rates = {"auroc": area, "threshold": layer / 10, "quality": [area, 1.0]}
        detector = {"read": "prompts", "row": rates, "token": {**rates, "threshold": 0.9}, **more}
        about = {"layer": layer, "model": model_facts(tiny), "detector": detector}
        entries[f"layer_{layer}"] = about
    save_vectors(folder, dict.fromkeys(entries, VECTOR), entries)
    return str(folder)


def gate_of(tiny: SteeredModel, **settings: Any) -> Gate:
    half = AddVectors(layers=[2], **settings)
    (step,) = half.interventions(tiny, {"layer_2": VECTOR})
    assert step.gate is not None  # type: ignore[union-attr]
    return step.gate  # type: ignore[union-attr,return-value]


def test_the_layer_that_detects_best_opens_the_gate(tiny: SteeredModel, tmp_path: Path):
    folder = detectors(tiny, tmp_path, {0: 0.7, 1: 0.9, 2: 0.8})
    gate = gate_of(tiny, gate=folder)
    assert (gate.layer, gate.threshold, gate.by) == (1, 0.1, "row")
    assert torch.equal(gate.direction, VECTOR)
    by_token = gate_of(tiny, gate=folder, gate_by="token")
    assert (by_token.threshold, by_token.by) == (0.9, "token")
    assert gate_of(tiny, gate=folder, gate_threshold=-0.5).threshold == -0.5


@pytest.mark.parametrize("threshold, acts", [(1.5, False), (-1.5, True)])
@pytest.mark.parametrize("by", ["row", "token"])
@pytest.mark.parametrize("name, shape", [("add_vec", (2, 16)), ("offset_vec", (2, 258))])
def test_what_is_done_to_the_head_waits_for_the_gate_too(
    tiny: SteeredModel,
    tmp_path: Path,
    name: str,
    shape: tuple[int, int],
    by: str,
    threshold: float,
    acts: bool,
):
    # No cosine is above 1.5, and every one is above -1.5.
    folder = detectors(tiny, tmp_path, {1: 0.9})
    gate = {"gate": folder, "gate_by": by, "gate_threshold": threshold}
    vectors, ids = {name: torch.ones(shape).cumsum(1)}, torch.tensor(ids_of([6]))
    bare, ungated, gated = (
        logits_under(tiny, ids, steps)
        for steps in (
            [],
            ApplyLMSteer(epsilon=0.1).interventions(tiny, vectors),
            ApplyLMSteer(epsilon=0.1, **gate).interventions(tiny, vectors),
        )
    )
    assert not torch.allclose(bare, ungated)
    assert torch.equal(gated, ungated if acts else bare)


@torch.inference_mode()
def logits_under(model: SteeredModel, ids: Tensor, steps: Sequence[Intervention]) -> Tensor:
    lengths = torch.tensor([ids.shape[1]])
    with model.steering(steps, prompt_lengths=lengths):
        return model.model(ids).logits


@pytest.mark.parametrize(
    "half", [lambda **more: AddVectors(layers=[1], **more), ApplyLMSteer], ids=["caa", "lm_steer"]
)
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gate_by": "layer"}, "unknown gate_by 'layer'"),
        ({"gate_threshold": 0.1}, "need gate"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    half: Callable[..., Any], settings: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        half(**settings)


def test_a_vector_that_was_not_calibrated_is_no_gate(tiny: SteeredModel, tmp_path: Path):
    save_vectors(tmp_path, {"layer_1": VECTOR}, {"layer_1": {"layer": 1}})
    with pytest.raises(ValueError, match=r"python -m steer\.gates calibrate"):
        gate_of(tiny, gate=str(tmp_path))


def test_answers_do_not_calibrate_a_gate_by_row(tiny: SteeredModel, tmp_path: Path):
    folder = detectors(tiny, tmp_path, {1: 0.9}, read="answers")
    with pytest.raises(ValueError, match="calibrated on answers"):
        gate_of(tiny, gate=folder)
    assert gate_of(tiny, gate=folder, gate_by="token").threshold == 0.9


# ---- from the command line ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_steered_where_the_detector_says_so(
    desk: Desk, capsys: pytest.CaptureFixture[str]
):
    desk.rows("on.jsonl", ON)
    desk.rows("off.jsonl", OFF)
    desk.rows("test.jsonl", [ON[1], OFF[3], ON[5], OFF[7]])
    model = [f"model_name_or_path={desk.model}", "device=cpu", "dtype=float32"]
    files = ["--on", "on.jsonl", "--off", "off.jsonl", "--fpr", "0"]
    main(["make", "out/gate", *files, "--layers", "0", "1", "--config", config(desk), *model])
    assert "layer_1" in capsys.readouterr().out
    desk.run("vectors_generate.py")
    desk.run("vectors_apply.py", generate_orig_output="true", multipliers="[60]")
    assert all(row["pred"] != row["orig_pred"] for row in desk.answers())
    more: dict[str, Any] = {"generate_orig_output": "true", "multipliers": "[60]"}
    printed = desk.run("vectors_apply.py", gate="out/gate", **more)
    assert desk.status == 0, desk.said
    steered_rows = [row["pred"] != row["orig_pred"] for row in desk.answers()]
    assert steered_rows == [True, False, True, False]
    assert "the gate let 2 of 4 rows pass" in printed
    told = json.loads((desk.out / "answers/mine_run.json").read_text())
    assert told["report"]["layers"]["1"]["gate_rows"] == [2, 4]


def config(desk: Desk) -> str:
    desk.write("gates.yaml", "use_chat_template: true\n")
    return "gates.yaml"


def test_settings_may_stand_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made: list[Any] = []
    monkeypatch.setattr("steer.gates.__main__._make", lambda *given: made.append(given) or {})
    words = ["--on", "a.jsonl", "--off", "b.jsonl", "--layers", "0", "1", "dtype=float32"]
    assert main(["make", "use_chat_template=false", "my/detector", *words, "+seed=7"]) == 0
    ((given, run),) = made
    assert (given.folder, given.layers) == ("my/detector", [0, 1])
    settings = run.settings
    assert (settings.dtype, settings.use_chat_template, settings.seed) == ("float32", False, 7)
    assert main(["make", "my/detector", *words, "--sed", "7"]) == 1
    assert "unrecognized arguments: --sed 7" in capsys.readouterr().err


def test_a_mistake_is_one_line(desk: Desk, capsys: pytest.CaptureFixture[str]):
    given = ["calibrate", str(desk.folder), "--config", config(desk)]
    assert main(given) == 1
    assert capsys.readouterr().err == "error: give either --pairs, or both --on and --off\n"
    assert main([*given, "--pairs", "sentiment", "--on", "a.jsonl"]) == 1
    assert "give either --pairs, or both" in capsys.readouterr().err
