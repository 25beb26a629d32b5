"""The three scripts, run in process with a tiny model, as a user would run them."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from desk import ROOT, Desk

pytestmark = pytest.mark.slow

SCRIPTS = ["steering.py", "vectors_generate.py", "vectors_apply.py"]


# ---- what they do ------------------------------------------------------------------------------


def test_steering_shows_answers_side_by_side_the_report_and_the_paths(desk: Desk):
    printed = desk.run("steering.py")
    assert desk.status == 0, desk.said
    for header in ("unsteered", "steered", "steered the other way", "Steering report"):
        assert f" {header} " in printed
    assert "held-out file of mine" in printed
    assert "written: out/vectors/mine/caa_vector" in printed
    assert "written: out/answers/mine_results.json" in printed


@pytest.mark.parametrize("script", ["steering.py", "vectors_apply.py"])
def test_answers_are_scored_by_the_metrics_that_are_named(desk: Desk, script: str):
    assert "written: out/vectors/mine/caa_vector\n" in desk.run("vectors_generate.py")
    printed = desk.run(script, eval_methods="[ppl,distinctness]", generate_orig_output="true")
    assert desk.status == 0, desk.said
    assert "written: out/answers/mine_evaluation.json\n" in desk.said
    assert "Evaluation: mine" in printed
    found = json.loads(Path("out/answers/mine_evaluation.json").read_text(encoding="utf-8"))
    # Scored by the model of the run, which is the one that is loaded.
    assert found["protocol"]["ppl"]["model"]["id"] == desk.model.name
    assert found["unsteered"].keys() >= {"perplexity", "dist-1"}


@pytest.mark.parametrize("script", ["steering.py", "vectors_apply.py"])
def test_an_unknown_metric_is_refused_before_anything_is_made(desk: Desk, script: str):
    before = desk.files()
    desk.run(script, eval_methods="[fluencey]")
    assert desk.status == 1
    assert "unknown metric 'fluencey'; did you mean 'fluency'?" in desk.said
    assert desk.files() == before


@pytest.mark.slow
def test_generate_then_apply_give_the_answers_of_steering(desk: Desk):
    desk.run("steering.py", generate_orig_output="true")
    once = desk.answers()
    vectors = (desk.out / "vectors/mine/caa_vector/layer_1.pt").read_bytes()
    for path in sorted(desk.out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    desk.run("vectors_generate.py")
    assert desk.status == 0, desk.said
    assert (desk.out / "vectors/mine/caa_vector/layer_1.pt").read_bytes() == vectors
    desk.run("vectors_apply.py", generate_orig_output="true")
    assert desk.status == 0, desk.said
    assert desk.answers() == once
    assert any(row["pred"] != row["orig_pred"] for row in once)


@pytest.mark.slow
def test_nothing_but_results_is_left_behind(desk: Desk):
    before = desk.files()
    for script in SCRIPTS:
        desk.run(script)
    left = {name for name in desk.files() - before if not name.endswith(".lock")}
    assert left == {
        "out/vectors/mine/caa_vector/layer_1.pt",
        "out/vectors/mine/caa_vector/metadata.json",
        "out/answers/mine_results.json",
        "out/answers/mine_run.json",
    }


def test_files_of_ones_own_need_one_line(desk: Desk):
    desk.rows(
        "my.jsonl", [{"prompt": "How?", "chosen": f"Yes {n}.", "rejected": "No."} for n in (1, 2)]
    )
    desk.write("asked.json", json.dumps([{"q": "What now?", "options": ["Tea", "Rest"]}]))
    others = desk.overrides(generation_data="asked.json", report="full")
    desk.bare(
        "steering.py",
        *("train_data=my.jsonl", "generation_fields={input:q,choices:options}"),
        *(other for other in others if not other.startswith("steer_train_dataset")),
    )
    assert desk.status == 0, desk.said
    assert "my.jsonl: 2 rows, question from prompt, matching from chosen, not_matching" in desk.said
    assert "written: out/vectors/my/caa_vector" in desk.printed
    assert "2 folds of the training pairs" in desk.printed
    (answer,) = desk.answers("asked")
    assert (answer["input"], answer["choices"]) == ("What now?", ["Tea", "Rest"])


def test_each_concept_of_a_data_set_has_vectors_and_answers_of_its_own(desk: Desk):
    concepts = "text,label,concept_id\n" + "".join(
        f"{text},{label},{concept}\n"
        for concept in (1, 0, -1)
        for text, label in (("Yes it is.", 1), ("All of it.", 1), ("No.", 0), ("Never.", 0))
    )
    desk.write("many.csv", concepts)
    formats = (desk.folder / "hparams/Steer/dataset_format.yaml").read_text()
    entry = "many: {file_path: many.csv, multi_concept: true}"
    desk.write(
        "hparams/Steer/dataset_format.yaml", formats.replace("train: {", "train: {" + entry + ", ")
    )
    desk.run("steering.py", steer_train_dataset="many")
    assert desk.status == 0, desk.said
    for concept in (0, 1):
        assert (desk.out / f"vectors/many/{concept}/caa_vector/layer_1.pt").is_file()
        assert (desk.out / f"answers/many/{concept}/mine_results.json").is_file()
    assert desk.printed.count("not measured (the data are single texts, not pairs)") == 2
    desk.run(
        "vectors_generate.py", steer_train_dataset="many/1", steer_vector_output_dirs="out/one"
    )
    assert [path.name for path in (desk.out / "one/many").iterdir()] == ["1"]


@pytest.mark.slow
def test_several_data_sets_are_answered_and_kept_apart(desk: Desk):
    desk.rows("other.jsonl", [{"matching": "Yes.", "not_matching": "No."}])
    formats = (desk.folder / "hparams/Steer/dataset_format.yaml").read_text()
    formats = formats.replace("train: {", "train: {other: {file_path: other.jsonl}, ")
    desk.write("hparams/Steer/dataset_format.yaml", formats)
    desk.run("steering.py", steer_train_dataset="[mine,other]", generation_data="[mine,more]")
    assert desk.status == 0, desk.said
    for name in ("mine", "other"):
        place = desk.out / "answers" / name
        assert len(json.loads((place / "mine_results.json").read_text())) == 4
        (row,) = json.loads((place / "more_results.json").read_text())
        assert row["reference_response"] == "Nothing"


@pytest.mark.slow
def test_resume_shows_the_same_report_again_without_answering(desk: Desk):
    first = desk.run("steering.py")
    stamp = (desk.out / "answers/mine_results.json").stat().st_mtime_ns
    again = desk.run("steering.py", resume="true")
    assert desk.status == 0, desk.said
    assert "already made" in desk.said
    assert "already answered" in desk.said
    assert again == first
    assert (desk.out / "answers/mine_results.json").stat().st_mtime_ns == stamp


# ---- errors ------------------------------------------------------------------------------------


ERRORS = [
    ({"layer": "[1]"}, "command line: unknown key 'layer'; did you mean 'layers'?"),
    (
        {"model": "gpt2"},
        "command line: unknown key 'model'; did you mean 'model_kwargs' or 'model_name_or_path'?\n",
    ),
    ({"layers": "abc"}, "command line: layers must be a list of whole numbers"),
    (
        {"layers": "12"},
        "command line: layers must be a list of whole numbers or null: got 12; one alone is "
        "written layers=[12]",
    ),
    ({"multipliers": "2,3"}, 'multipliers=2,3: a list is written in brackets, "multipliers=[2,3]"'),
    (
        {"steer_train_dataset": "out.txt"},
        "unknown train data set of hparams/Steer/dataset_format.yaml 'out.txt' (allowed: mine)",
    ),
    (
        {"steer_train_dataset": "hparams"},
        "hparams is no data file: data can be read from files with .jsonl, .json, .csv",
    ),
    (
        {"layers": "[1"},
        "cannot read the argument 'layers=[1': write key=value, a list as \"key=[1,2]\"",
    ),
    ({"model_name_or_path": "./gone"}, "no model folder at ./gone"),
    ({"api_key": "sk-1"}, "api_key: keys and tokens come from the environment only"),
    ({"model_kwargs__token": "hf_1"}, "model_kwargs.token: keys and tokens come from the environm"),
    (
        {"steer_train_dataset": "sentimant"},
        "unknown train data set of hparams/Steer/dataset_format",
    ),
    ({"steer_vector_output_dirs": "train.jsonl"}, "cannot write to train.jsonl/mine/caa_vector"),
    ({"system_prompt": "${nothing}"}, "config: Interpolation key 'nothing' not found"),
]


@pytest.mark.parametrize("more, message", ERRORS, ids=[next(iter(e[0])) for e in ERRORS])
def test_a_mistake_is_one_line_on_stderr_and_status_1(desk: Desk, more: dict, message: str):
    printed = desk.run("vectors_generate.py", **more)
    assert desk.status == 1
    assert desk.said.startswith(f"error: {message}")
    assert desk.said.count("\n") == 1
    assert printed == ""


def test_a_config_that_is_not_there_is_named_with_the_nearest(desk: Desk):
    desk.bare("vectors_apply.py", "--config-name", "vector_aply")
    assert desk.status == 1
    assert (
        "unknown config 'vector_aply'; did you mean 'vector_apply'? (allowed: config," in desk.said
    )
    assert desk.said.count("\n") == 1


def test_a_word_without_a_value_is_named(desk: Desk):
    desk.bare("vectors_apply.py", "layers", "12")
    assert desk.status == 1
    assert desk.said.startswith("error: cannot read the argument 'layers': write key=value")


@pytest.mark.parametrize("words", [["--layers", "12"], ["--layers=12"]])
def test_settings_have_no_dashes(desk: Desk, words: list[str]):
    desk.bare("steering.py", *words)
    assert desk.status == 1
    wanted = f"unknown option {words[0]!r}: a setting is given as layers=value"
    assert desk.said == f"error: {wanted}\n"


def test_the_whole_traceback_is_shown_where_asked_for(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STEER_TRACEBACK", "1")
    desk.run("vectors_generate.py", layers="[9]")
    assert desk.status == 1
    assert desk.said.count("Traceback (most recent call last):") >= 1
    assert "layers [9] do not exist: the model has 3 decoder blocks" in desk.said


def test_a_mistake_of_ours_is_not_hidden(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("steer.generator.prepare_train_dataset", broken)
    with pytest.raises(KeyError, match="ours"):
        desk.run("vectors_generate.py")


def test_an_interrupted_run_says_how_to_go_on(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    desk.run("vectors_generate.py")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("steer.applier.answer_jobs", interrupted)
    desk.run("vectors_apply.py")
    assert desk.status == 130
    assert desk.said.splitlines()[-1] == (
        "interrupted: finished answers and vectors are kept; resume=true goes on from them"
    )
    assert "Traceback" not in desk.said


def test_steering_finds_a_mistake_in_its_second_half_before_it_trains(desk: Desk):
    desk.run("steering.py", multipliers="[1,2]")
    assert desk.status == 1
    assert "layers and multipliers go in pairs: got 1 layers [1] and 2 multipliers" in desk.said
    desk.run("steering.py", generation_data="nothing")
    assert desk.status == 1
    assert not desk.out.exists()


# ---- help and start-up -------------------------------------------------------------------------


def started(*arguments: str) -> str:
    """What a Python process prints that also says which big libraries it had imported."""
    code = (
        "import atexit, runpy, sys, time\n"
        "start = time.process_time()\n"
        "def end():\n"
        "    big = [m for m in ('torch', 'transformers', 'hydra') if m in sys.modules]\n"
        "    print(f'\\nimported {big} in {time.process_time() - start:.2f} s')\n"
        "atexit.register(end)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__') if sys.argv else __import__('steer')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout


def test_import_steer_imports_nothing_big():
    printed = started()
    assert "imported [] in" in printed


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_usage_and_the_config_file(script: str):
    printed = started(script, "--help")
    assert f"python {script}" in printed
    assert "--explain-config" in printed
    assert "key=value" in printed
    file = printed.partition("hparams/Steer/<method>_hparams")[2].partition("hparams/Steer/")[2]
    name, _, keys = file.partition(":\n\n")
    assert (ROOT / "hparams/Steer" / name).read_text(encoding="utf-8").strip() in keys
    assert "imported ['hydra'] in" in printed


def test_help_is_shown_where_python_checks_it(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    def checked(self: argparse.ArgumentParser, action: argparse.Action) -> None:
        if "%" in (action.help or ""):
            raise ValueError("badly formed help string")

    added = argparse.ArgumentParser._add_action

    def add(self: argparse.ArgumentParser, action: argparse.Action) -> argparse.Action:
        self._check_help(action)  # type: ignore[attr-defined]
        return added(self, action)

    # As Python 3.14 does it.
    monkeypatch.setattr(argparse._ActionsContainer, "_check_help", checked, raising=False)
    monkeypatch.setattr(argparse.ArgumentParser, "_add_action", add)
    assert "--explain-config" in desk.bare("steering.py", "--help")
    assert desk.status == 0
    assert "_check_help" not in argparse.ArgumentParser.__dict__


def test_help_shows_the_config_that_was_chosen(desk: Desk):
    desk.write("mine/top.yaml", "seed: 3  # ${not} an $interpolation here\n")
    printed = desk.bare("steering.py", "--config-path=mine", "-cn", "top", "-h")
    assert desk.status == 0
    assert "mine/top.yaml:\n\nseed: 3  # ${not} an $interpolation here\n" in printed


# ---- completion in the shell --------------------------------------------------------------------

COMPLETE = """
eval "$(python steering.py -sc install=bash)"
COMP_LINE="python steering.py $1"; words=($COMP_LINE); COMP_CWORD=$((${#words[@]} - 1))
hydra_bash_completion
printf '%s\\n' "${COMPREPLY[@]}"
eval "$(python steering.py -sc uninstall=bash)"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    "typed, offered",
    [
        ("generation_d", {"generation_data.", "generation_data_size="}),
        ("seed=1 generation_params.m", {"generation_params.max_new_tokens="}),
        ("data_source=", {"data_source=auto"}),
    ],
)
def test_bash_completes_keys(tmp_path: Path, typed: str, offered: set[str]):
    # The name under which one types it, and no other.
    (tmp_path / "python").symlink_to(sys.executable)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = ["bash", "-c", COMPLETE, "bash", typed]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert set(done.stdout.split()) == offered, done.stderr
