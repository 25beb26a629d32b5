"""Result files in, figures out: `Evaluator`, its files, and the script."""

import csv
import json
import logging
import math
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from steer.evaluate import METRICS_CLASS_DICT, Evaluator
from steer.evaluate.evaluate import main
from steer.evaluate.intervals import paired_differences, resamples_of
from steer.evaluate.plots import effects, write_plot
from steer.evaluate.reading import read_sides, strengths

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "steer" / "evaluate" / "evaluate.py"


def row(pred: Any, orig: Any = None, **more: Any) -> dict[str, Any]:
    """A line as the applier writes it."""
    return {
        "input": "p",
        "orig_pred": [] if orig is None else [orig],
        "pred": pred if isinstance(pred, list) else [pred],
        "reference_response": None,
        "complete_output": [],
    } | more


ROWS = [row("a a a a", "a b c d"), row("a b", "a b c"), row([], "z")]


def write(path: Path, rows: Any, model: str = "tiny", **run: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    if run:
        beside = path.with_name(path.name.replace("_results", "_run"))
        about = {"data": {"name": "mine"}, "model": {"id": model}, "settings": {"methods": run}}
        beside.write_text(json.dumps({"run": about}))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- reading -----------------------------------------------------------------------------------


def test_both_sides_are_read_and_items_without_an_answer_are_missing():
    sides = read_sides(ROWS, "mine")
    assert [item.responses for item in sides["steered"].items] == [("a a a a",), ("a b",)]
    assert [one.item for one in sides["steered"].missing] == [3]
    assert sides["unsteered"].places == [0, 1, 2]


def test_a_file_without_unsteered_answers_has_one_side():
    assert list(read_sides([row("a")], "mine")) == ["steered"]


def test_the_reference_may_stand_where_easyedit2_looks_for_it():
    (item,) = read_sides([row("a", answer="#### 18")], "mine")["steered"].items
    assert item.reference == "#### 18"


def test_log_probabilities_of_choices_belong_to_one_side():
    given = row("A", "B", choice_log_probs={"A": -1.0}, orig_choice_log_probs={"A": -2.0})
    sides = read_sides([given], "mine")
    found = [sides[side].items[0].row["choice_log_probs"] for side in ("steered", "unsteered")]
    assert found == [{"A": -1.0}, {"A": -2.0}]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "mine holds no results"),
        ({"pred": ["a"]}, "mine must hold a list of results: got dict"),
        ([row("a"), "b"], "mine item 2 must be an object"),
        ([row("a"), {"input": "p"}], r"mine item 2 has no 'pred' \(fields: input\)"),
        ([{"pred": ["a"]}], "mine item 1 has no 'input'"),
        ([row("a") | {"pred": "text"}], "item 1: 'pred' must be a list of texts: got 'text'"),
        ([row(["a", None])], "item 1: 'pred' must be a list of texts"),
        ([row("a", 3)], "item 1: 'orig_pred' must be a list of texts"),
        ([row("a", input=["p"])], "item 1: 'input' must be text: got list"),
        ([row([]), row([])], "mine holds no answer: 'pred' of every item is empty"),
    ],
)
def test_what_is_no_result_is_named_by_its_number(rows: Any, message: str):
    with pytest.raises(ValueError, match=message):
        read_sides(rows, "mine")


# ---- intervals ---------------------------------------------------------------------------------


def test_an_interval_is_that_of_the_normal_approximation_where_items_are_many():
    values = [math.sin(n * n) for n in range(400)]
    found = paired_differences({"f": values}, {"f": [0.5] * 400})["f"]
    mean = sum(values) / 400
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 400)
    half = 1.96 * deviation / math.sqrt(400)
    assert found["mean"] == pytest.approx(mean - 0.5)
    assert found["low"] == pytest.approx(mean - 0.5 - half, abs=0.05 * half)
    assert found["high"] == pytest.approx(mean - 0.5 + half, abs=0.05 * half)
    assert (found["items"], found["resamples"]) == (400, 10_000)


def test_only_items_with_both_values_count_and_one_alone_has_no_interval():
    found = paired_differences({"f": [1.0, None, 3.0]}, {"f": [0.5, 1.0, None], "g": [1.0] * 3})
    about = {"mean": 0.5, "low": None, "high": None, "items": 1, "resamples": 10_000}
    assert found == {"f": about}
    assert paired_differences({"f": [None]}, {"f": [1.0]}) == {}


def test_an_interval_is_the_same_every_time_and_whatever_is_measured_beside_it():
    steered = {"f": [1.0, 2.0, 4.0], "g": [0.0, 1.0, 0.0]}
    unsteered = {"f": [0.0, 0.0, 0.0], "g": [1.0, 1.0, 1.0]}
    both = paired_differences(steered, unsteered)
    assert both["g"] == paired_differences({"g": steered["g"]}, unsteered)["g"]
    # The mean of three draws is extreme in 1 of 27 resamples: over 2.5 %.
    assert (both["f"]["low"], both["f"]["high"]) == (1, 4)


def test_many_items_are_resampled_less_often():
    assert [resamples_of(n) for n in (2, 2_000, 4_000, 10**6)] == [10_000, 10_000, 5_000, 1_000]


# ---- Evaluator ---------------------------------------------------------------------------------


def test_figures_stand_under_their_documented_names_with_the_unsteered_beside_them():
    found = Evaluator(eval_methods=["distinctness"]).evaluate(ROWS, "mine")
    assert found["dist-1"] == pytest.approx((1 / 4 + 1) / 2)
    assert found["unsteered"]["dist-1"] == 1
    difference = found["difference"]["dist-1"]
    assert difference["mean"] == pytest.approx((-3 / 4 + 0) / 2)
    assert difference["low"] <= difference["mean"] <= difference["high"]
    assert difference["items"] == 2
    assert found["protocol"]["distinctness"]["denominator"] == "words"
    (missing,) = found["missing"]["distinctness"]
    assert (missing["side"], missing["item"]) == ("steered", 3)


def test_values_and_missing_items_keep_their_numbers_where_items_are_left_out():
    rows = [row([], "No."), row("", "Sorry."), row("Sorry.", "Yes.")]
    found = Evaluator(eval_methods=["refusal"]).evaluate(rows, "mine")
    assert [(m["item"], m["side"]) for m in found["missing"]["refusal"]] == [
        (1, "steered"),
        (2, "steered"),
    ]
    assert found["difference"]["refusal_rate"]["items"] == 1
    assert found["difference"]["refusal_rate"]["mean"] == 1


def test_a_metric_that_cannot_score_is_named_and_the_others_go_on():
    evaluator = Evaluator(eval_methods=["gsm", "distinctness"])
    found = evaluator.evaluate(ROWS, "mine")
    assert "dist-1" in found
    assert found["failed"]["gsm"].startswith("gsm needs a reference response")
    assert not evaluator.broken
    with pytest.raises(ValueError, match=r"mine: no metric can score it \(gsm: gsm needs"):
        Evaluator(eval_methods="gsm").evaluate(ROWS, "mine")


def test_two_metrics_with_a_figure_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METRICS_CLASS_DICT, "other", METRICS_CLASS_DICT["distinctness"])
    found = Evaluator(eval_methods=["distinctness", "other"]).evaluate(ROWS, "mine")
    assert found["other: dist-1"] == found["dist-1"]
    assert found["difference"]["other: dist-1"] == found["difference"]["dist-1"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "eval_methods is missing"),
        ({"eval_methods": ["distinctnes"]}, "unknown metric 'distinctnes'; did you mean 'dist"),
        ({"eval_methods": "gsm", "gsm_rul": "strict"}, "unknown option 'gsm_rul'; did you mean"),
        ({"eval_methods": "gsm", "gsm_rule": "strikt"}, "gsm_rule 'strikt'; did you mean 'strict'"),
        ({"eval_methods": "gsm", "save_results": "maybe"}, "save_results must be true or false"),
        ({"eval_methods": "gsm", "mode": "fast"}, "unknown mode 'fast'"),
    ],
)
def test_a_wrong_option_is_an_error_that_says_which(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Evaluator(**options)


def test_easyedit2s_keywords_are_taken_none_included(tmp_path: Path):
    evaluator = Evaluator(
        mode="direct",
        save_results=False,
        eval_methods=["distinctness"],
        results_dir=str(tmp_path),
        generation_dataset_path=None,
    )
    evaluator.evaluate_from_direct(ROWS, "mine")
    assert list(tmp_path.iterdir()) == []


def test_unsteered_answers_are_scored_unless_told_not_to():
    found = Evaluator(eval_methods="distinctness", unsteered=False).evaluate(ROWS, "mine")
    assert found["unsteered"] == found["difference"] == {}


# ---- files -------------------------------------------------------------------------------------


def test_a_file_is_evaluated_into_the_documented_place(tmp_path: Path):
    path = write(tmp_path / "answers" / "mine_results.json", ROWS)
    evaluator = Evaluator(eval_methods="distinctness", results_dir=tmp_path / "out")
    found = evaluator.evaluate_from_file(path)
    assert read(tmp_path / "out" / "mine_evaluation.json") == found


def test_a_folder_is_evaluated_with_folders_kept_apart(tmp_path: Path):
    for strength in (1.0, 3.0):
        path = tmp_path / "in" / f"caa_{strength:g}" / "mine_results.json"
        write(path, ROWS, caa={"alg_name": "caa", "multipliers": [strength, strength]})
    write(tmp_path / "in" / "more_results.json", [row("a b c")])
    out = tmp_path / "out"
    evaluator = Evaluator(
        eval_methods=["distinctness"], generation_dataset_path=tmp_path / "in", results_dir=out
    )
    found = evaluator.evaluate_all()
    assert list(found) == ["caa_1/mine", "caa_3/mine", "more"]
    written = read(out / "caa_3" / "mine_evaluation.json")
    assert written["strengths"] == {"caa": 3.0}
    assert written["run"] == {"data": "mine", "model": "tiny", "methods": {"caa": {}}}
    lines = list(csv.DictReader((out / "evaluation.csv").read_text().splitlines()))
    assert [line["results"] for line in lines] == [name for name in found for _ in range(3)]
    assert float(lines[0]["difference"]) == found["caa_1/mine"]["difference"]["dist-1"]["mean"]
    assert lines[-1]["unsteered"] == ""
    table = (out / "evaluation.md").read_text().splitlines()
    assert table[2].startswith("| caa_1/mine | dist-1 | 0.625 | 1 | -0.375 [")
    assert table[-1] == "| more | dist-3 | 0.3333 | - | - |"


@pytest.mark.parametrize(
    "methods, told",
    [
        ({"caa": {"multipliers": [2.0, 2.0]}}, {"caa": 2.0}),
        ({"caa": {"multipliers": [2.0, 0.0]}}, {"caa": [2.0, 0.0]}),
        ({"ablate": {"amount": 0}, "prompt": {"prompt": "x"}}, {"ablate": 0}),
        ([], {}),
    ],
)
def test_strengths_are_read_beside_the_results(tmp_path: Path, methods: Any, told: Any):
    path = write(tmp_path / "mine_results.json", ROWS)
    run = {"run": {"settings": {"methods": methods}}}
    write(tmp_path / "mine_run.json", run)
    assert strengths(path) == told


def test_a_broken_file_of_a_folder_is_said_and_the_others_are_scored(tmp_path: Path):
    write(tmp_path / "a_results.json", [{"input": "p"}])
    write(tmp_path / "b_results.json", ROWS)
    evaluator = Evaluator(eval_methods="distinctness", results_dir=tmp_path)
    assert list(evaluator.evaluate_all()) == ["b"]
    assert "a item 1 has no 'pred'" in str(evaluator.broken[0])


def test_nothing_to_evaluate_says_what_is_looked_for(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no file below it is called <data set>_results.json"):
        Evaluator(eval_methods="gsm", results_dir=tmp_path).evaluate_all()
    with pytest.raises(FileNotFoundError, match="no result file or folder at"):
        Evaluator(eval_methods="gsm", results_dir=tmp_path).evaluate_from_file(tmp_path / "none")


# ---- plots -------------------------------------------------------------------------------------


def swept(strength: float | None, **figures: Any) -> dict[str, Any]:
    strengths = {} if strength is None else {"caa": strength}
    return {**figures, "unsteered": figures, "difference": {}, "strengths": strengths}


@pytest.mark.slow
def test_figures_are_drawn_against_perplexity_in_the_order_of_strength(tmp_path: Path):
    pytest.importorskip("matplotlib")
    found = {
        "b/mine": swept(3.0, perplexity=40.0, positive=0.9, judged=[1]),
        "a/mine": swept(1.0, perplexity=20.0, positive=0.6, judged=[2]),
    }
    points = effects(found)["positive"]["mine, caa"]
    assert [(p.strength, p.price, p.figure) for p in points] == [(1, 20, 0.6), (3, 40, 0.9)]
    assert list(effects(found)) == ["perplexity", "positive"]
    for against in ("perplexity", "strength"):
        assert write_plot(found, tmp_path / f"{against}.png", against)
        assert (tmp_path / f"{against}.png").read_bytes().startswith(b"\x89PNG")


def test_strengths_need_no_perplexity():
    found = {f"{n}/mine": swept(float(n), positive=n / 10) for n in (2, 1)}
    assert effects(found) == {}
    (points,) = effects(found, "strength")["positive"].values()
    assert [(p.strength, p.price, p.figure) for p in points] == [(1, None, 0.1), (2, None, 0.2)]


def test_a_series_is_of_one_model_the_same_layers_and_one_kind_of_strength(tmp_path: Path):
    runs = {
        "a/1": ("small", {"multipliers": [2.0], "layers": [15], "strength": "absolute"}),
        "a/2": ("small", {"multipliers": [0.12], "layers": [15], "strength": "relative"}),
        "a/3": ("small", {"multipliers": [0.2], "layers": [15], "strength": "relative"}),
        "b": ("large", {"multipliers": [0.2], "layers": [12, 13], "strength": "relative"}),
    }
    for place, (model, half) in runs.items():
        write(tmp_path / place / "mine_results.json", ROWS, model, caa=half)
    evaluator = Evaluator(
        eval_methods="distinctness", generation_dataset_path=tmp_path, save_results=False
    )
    lines = effects(evaluator.evaluate_all(), "strength")["dist-1"]
    assert {name: [point.strength for point in line] for name, line in lines.items()} == {
        "mine, caa, small, layers 15, absolute": [2.0],
        "mine, caa, small, layers 15, relative": [0.12, 0.2],
        "mine, caa, large, layers 12, 13, relative": [0.2],
    }


@pytest.mark.slow
def test_a_series_has_one_colour_and_a_place_in_the_legend_whatever_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn: list[Any] = []
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: drawn.append(self))
    caplog.set_level(logging.INFO)
    # The first panel has one series alone, the last ones the other.
    figures = {"early": ["f0", "f1"], "late": ["f1", *(f"g{n}" for n in range(12))]}
    found = {
        f"{place}/{name}": swept(strength, **dict.fromkeys(those, 0.5))
        for place, strength in (("x", 1.0), ("y", 2.0))
        for name, those in figures.items()
    }
    assert write_plot(found, tmp_path / "all.png", "strength")
    assert "all.png has 12 figures, and not g10, g11" in caplog.text
    (sheet,) = drawn
    colours = {
        (line.get_label(), line.get_color()) for panel in sheet.axes for line in panel.get_lines()
    }
    assert len(colours) == 2
    (legend,) = sheet.legends
    assert [text.get_text() for text in legend.get_texts()] == ["early, caa", "late, caa"]
    shown = {
        (text.get_text(), line.get_color())
        for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)
    }
    assert shown == colours


def test_without_strengths_there_is_no_plot_against_them(tmp_path: Path):
    found = {name: swept(None, perplexity=3.0, positive=0.9) for name in "ab"}
    assert not write_plot(found, tmp_path / "no.png", "strength")


def test_without_matplotlib_a_note_says_what_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("steer.evaluate.plots.find_spec", lambda name: None)
    caplog.set_level(logging.INFO)
    found = {name: swept(None, perplexity=3.0, positive=0.9) for name in "ab"}
    assert not write_plot(found, tmp_path / "no.png")
    assert "the extra 'plots' brings it" in caplog.text


def test_without_perplexity_or_with_one_file_there_is_nothing_to_draw(tmp_path: Path):
    assert not effects({"a": swept(None, positive=0.9), "b": swept(None, positive=0.8)})
    assert not write_plot({"a": swept(None, perplexity=3.0, positive=0.9)}, tmp_path / "no.png")
    assert not list(tmp_path.iterdir())


# ---- the script --------------------------------------------------------------------------------


def run(*arguments: Any) -> int | str | None:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as ended:
        return ended.code


def test_the_script_scores_and_shows_within_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    path = write(tmp_path / "mine_results.json", ROWS)
    arguments = ("--generation_dataset_path", path, "--eval_methods", "distinctness", "gsm")
    assert run(*arguments, "--results_dir", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "Evaluation: mine" in shown
    assert "distinctness: 1 without a score" in shown
    assert "gsm: not scored: gsm needs a reference response" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert (tmp_path / "out" / "evaluation.md").is_file()


def test_save_results_false_is_false_on_the_command_line(tmp_path: Path):
    path = write(tmp_path / "mine_results.json", ROWS)
    out = tmp_path / "out"
    arguments = ("--generation_dataset_path", path, "--eval_methods", "distinctness")
    assert run(*arguments, "--results_dir", out, "--save_results", "False") == 0
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--eval_methods", "gsn"], "unknown metric 'gsn'; did you mean 'gsm'?"),
        (["--eval_method", "gsm"], "unknown flag '--eval_method'; did you mean '--eval_methods'?"),
        (["--results_dir"], "argument --results_dir: expected one argument"),
        (["--eval_methods", "gsm", "--generation_dataset_path", "no"], "no result file or folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_what_is_not_there_ends_with_status_1_after_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def no_model(self: Any, items: Any) -> Any:
        raise OSError("no model here")

    monkeypatch.setattr(METRICS_CLASS_DICT["refusal"], "score", no_model)
    path = write(tmp_path / "mine_results.json", ROWS)
    arguments = ("--generation_dataset_path", path, "--eval_methods", "refusal", "distinctness")
    assert run(*arguments, "--results_dir", tmp_path) == 1
    assert capsys.readouterr().err.endswith("error: no model here\n")
    assert "dist-1" in read(tmp_path / "mine_evaluation.json")


def test_ctrl_c_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(self: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "evaluate_all", interrupted)
    assert run("--eval_methods", "gsm") == 130
    assert capsys.readouterr().err == "interrupted: files that were finished are kept\n"


def test_every_option_of_every_metric_is_a_flag_that_help_explains(
    capsys: pytest.CaptureFixture[str],
):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    for cls in METRICS_CLASS_DICT.values():
        for name in cls.__dataclass_fields__:
            assert f"--{name} " in shown


@pytest.mark.slow
def test_no_file_beside_the_script_is_named_like_a_library():
    taken = sys.stdlib_module_names | packages_distributions().keys()
    beside = {path.stem for path in SCRIPT.parent.glob("*.py")} - {"__init__", "evaluate"}
    assert not beside & taken


@pytest.mark.slow
def test_the_script_runs_from_anywhere_where_steer_is_not_installed(tmp_path: Path):
    path = write(tmp_path / "mine_results.json", ROWS)
    # Only what steer runs on is on the path, and neither the project nor the script's folder.
    libraries = [place for place in sys.path if "site-packages" in place]
    code = (
        f"import sys; sys.path[:0] = [{str(SCRIPT.parent)!r}, *{libraries!r}]; import runpy; "
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); import steer; "
        f"sys.exit(steer.__file__ != {str(ROOT / 'steer' / '__init__.py')!r} "
        f"or {str(SCRIPT.parent)!r} in sys.path)"
    )
    arguments = ["--generation_dataset_path", path, "--eval_methods", "distinctness"]
    command = [sys.executable, "-S", "-E", "-c", code, *arguments, "--results_dir", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine_evaluation.json").is_file()
