"""What the scripts print: what training found, and answers as they are."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_methods import applier_of, method_file
from tiny import steered, tiny_config
from transformers import AutoModelForCausalLM

from steer import BaseVectorGenerator
from steer.effect import Effect
from steer.models.facts import model_facts
from steer.report import SteeringReport
from steer.settings import Settings
from steer.showing import (
    ASCII_LEVELS,
    curve,
    evaluator_of,
    findings,
    show_evaluation,
    show_training,
    side_by_side,
)


def printed(*parts: Any) -> str:
    """On a terminal of 80 columns without colour."""
    console = Console(file=io.StringIO(), width=80, color_system=None)
    for part in parts:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def cells(text: str) -> list[list[str]]:
    """The rows of all tables in `text`."""
    lines = [line for line in text.splitlines() if line[:1] in ("│", "┃")]
    return [[c.strip() for c in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]


@pytest.mark.parametrize(
    "value, shown",
    [
        (3, "3"),
        (0.123456, "0.1235"),
        (12345678.0, "1.235e+07"),
        (True, "yes"),
        (False, "no"),
        (None, "none"),
        ("ties", "ties"),
        ([], "none"),
        ([1.5, 2], "1.5, 2"),
        (["a", "b"], "a, b"),
        ("[/bold] [x]", "[/bold] [x]"),
        ([float(n) for n in range(8)], "0 -> 7  ▁▂▃▄▅▆▇█  (8 values)"),
    ],
)
def test_a_single_value_is_a_row(value: Any, shown: str):
    assert ["some key", shown] in cells(printed(*findings("caa on mine", {"some_key": value})))


def test_a_curve_shows_first_last_and_course():
    assert curve([4.0] * 9) == "4 -> 4  ▁▁▁▁▁▁▁▁▁  (9 values)"
    # 48 values are drawn as 24, each the mean of two.
    long = curve([7.0 - n // 6 for n in range(48)])
    assert long == "7 -> 0  ███▇▇▇▆▆▆▅▅▅▄▄▄▃▃▃▂▂▂▁▁▁  (48 values)"
    assert curve([0.0, 7.0, 0.0], ASCII_LEVELS) == "0 -> 0  _@_  (3 values)"


def test_matrices_lists_and_reports_inside_are_tables_with_titles():
    report = {
        "layer_1": {
            "loss": 2.0,
            "cosines": [[1.0, -0.25], [-0.25, 1.0]],
            "features": [{"id": n, "fires_on": f"word {n}"} for n in range(12)],
        },
        "empty": {},
    }
    text = printed(*findings("lm_steer on mine", report))
    for title in ("lm_steer on mine: layer 1", "lm_steer on mine: layer 1: cosines"):
        assert title in text.splitlines()
    rows = cells(text)
    assert ["2", "-0.25", "1.00"] in rows
    assert ["", "id", "fires on"] in rows
    assert ["10", "9", "word 9"] in rows
    assert ["11", "10", "word 10"] not in rows
    assert "and 2 more" in text
    assert ["empty", "none"] in rows
    assert max(map(len, text.splitlines())) <= 80


def test_what_each_method_found_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = {
        "steer_train_hparam_paths": [method_file(tmp_path, "merge_vector", "generate")],
        "save_vectors": False,
    }
    generator = BaseVectorGenerator(config)
    generator.generate_vectors()
    show_training(generator)
    shown = capsys.readouterr().out
    assert "merge_vector on no_data: layer 0 merged vector" in shown
    assert ["signs in conflict", "0"] in cells(shown)
    # The same vector twice.
    assert ["1", "1.00", "1.00"] in cells(shown)


def test_brackets_in_an_answer_are_text(tmp_path: Path):
    applier = applier_of(["prompt"], steered(tiny_config("llama")), tmp_path)
    record = {"input": "[b]", "orig_pred": ["[/INST] no"], "pred": ["[red]yes"]}
    assert ["[b]", "[/INST] no", "[red]yes"] in cells(
        printed(side_by_side(applier, "mine", [record], both_ways=False))
    )


def test_concepts_of_one_id_keep_figures_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    applier = applier_of(
        ["prompt"], steered(tiny_config("llama")), tmp_path, eval_methods=["refusal"]
    )
    for name, pred in {"s/mood/L1": "Sorry, I can't.", "s/words/L1": "Gladly."}.items():
        path = applier.results_path(name)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps([{"input": "p", "pred": [pred]}]))
    show_evaluation(applier, ["s/mood/L1", "s/words/L1"])
    written = sorted((tmp_path / "results").rglob("*_evaluation.json"))
    names = [path.relative_to(tmp_path / "results").as_posix() for path in written]
    assert names == ["s/mood/L1_evaluation.json", "s/words/L1_evaluation.json"]
    assert [json.loads(path.read_text())["refusal_rate"] for path in written] == [1, 0]
    assert "Evaluation: s/words/L1" in capsys.readouterr().out


@pytest.mark.usefixtures("no_weights_in_use")
def test_perplexity_is_of_the_model_that_the_run_holds(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(
        model_name_or_path=str(tiny_folder),
        device="cpu",
        revision="v2",
        trust_remote_code=True,
        model_kwargs={"attn_implementation": "eager"},
        eval_methods=["ppl"],
        eval_options={"save_results": False},
    )
    held = settings.source.load()

    def another(*_: Any, **options: Any) -> None:
        raise AssertionError(f"a second model is read: {options}")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", another)
    evaluator = evaluator_of(settings)
    found = evaluator.evaluate([{"input": "p", "pred": [" answer"]}], "mine")  # type: ignore[union-attr]
    assert found["protocol"]["ppl"]["model"] == model_facts(held)


def test_a_report_shows_itself_as_tables_in_a_notebook():
    counts = {"passes": 4, "tokens": 28, "tokens_changed": 27, "dose": 0.125}
    effect = Effect(1.5, 0.25, 2.0, 8, [], 0, 0.0, "the pairs given")
    report = SteeringReport(layers={3: counts}, effect=effect)
    shown = report._repr_mimebundle_([], [])  # what IPython asks for
    assert set(shown) == {"text/plain", "text/html"}
    for text in shown.values():
        for said in ("28", "27", "12.5%", "+1.50"):
            assert said in text


@pytest.mark.parametrize(
    "pairs, low, high, said",
    [
        (5, 0.4, 2.1, "too few pairs to tell: give 6 at least (here)"),
        (1, -2.0, -2.0, "too few pairs to tell: give 6 at least (here)"),
        (6, 0.4, 2.1, "matching answers become likelier (here)"),
        (6, -2.1, -0.4, "matching answers become less likely (here)"),
        (6, -0.4, 2.1, "no clear effect: the 95 % interval holds 0 (here)"),
    ],
)
def test_a_report_says_what_the_interval_shows(pairs: int, low: float, high: float, said: str):
    effect = Effect((low + high) / 2, low, high, pairs, [], 0, 0.0, "here")
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(SteeringReport(effect=effect))
    assert said in console.export_text()
