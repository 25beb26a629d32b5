"""Keys and tokens come from the environment only, and reach no file and no log."""

import logging
import sys
from pathlib import Path

import pytest
from desk import Desk

from steer.secrets import RedactingFormatter, is_secret_key, redacted, refuse_secrets

pytestmark = pytest.mark.slow

MARKER = "hf_MARKERmarker0123456789"
VARIABLES = ("HF_TOKEN", "OPENAI_API_KEY", "API_KEY", "NP_API_KEY")


@pytest.fixture(autouse=True)
def _secrets_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, MARKER)
    monkeypatch.setenv("STEER_HOME", str(tmp_path / "home"))


def holding(folder: Path, secret: str) -> list[str]:
    """Files below `folder` with `secret` in them or in their names."""
    found = [path for path in folder.rglob("*") if secret in path.name]
    files = (path for path in folder.rglob("*") if path.is_file())
    found += [path for path in files if secret.encode() in path.read_bytes()]
    return [str(path) for path in found]


SECRET_PROMPT = "You are ${oc.env:HF_TOKEN}."


@pytest.mark.parametrize("script", ["steering.py", "vectors_generate.py", "--explain-config"])
def test_a_secret_in_a_prompt_reaches_no_file_no_log_and_no_screen(desk: Desk, script: str):
    arguments = ["--explain-config"] if script.startswith("--") else []
    more = {"system_prompt": SECRET_PROMPT, "generate_orig_output": "true"}
    desk.run("steering.py" if arguments else script, *arguments, **more)
    assert desk.status == 0, desk.said
    assert MARKER not in desk.printed + desk.said
    assert holding(desk.folder, MARKER) == []


def test_the_model_does_read_it(desk: Desk):
    desk.run("steering.py", system_prompt=SECRET_PROMPT)
    assert all("You are ***." in row["complete_output"][0] for row in desk.answers())


def test_a_secret_in_a_config_file_and_in_a_method_file_reaches_no_file(
    desk: Desk, caplog: pytest.LogCaptureFixture
):
    import steer

    desk.write(
        "caa.yaml", "alg_name: caa\nlayers: [1]\nsystem_prompt: '${oc.env:OPENAI_API_KEY}'\n"
    )
    config = {
        "model_name_or_path": str(desk.model),
        "device": "cpu",
        "steer_train_hparam_paths": "caa.yaml",
        "steer_train_dataset": "mine",
        "steer_vector_output_dirs": "out/vectors",
        "apply_steer_hparam_paths": "caa.yaml",
        "generation_data": "mine",
        "generation_output_dir": "out/answers",
        "generation_params": {"max_new_tokens": 2},
    }
    generator = steer.BaseVectorGenerator(config)
    with caplog.at_level(logging.DEBUG, logger="steer"):
        made = generator.generate_vectors()
        applier = steer.BaseVectorApplier(config, generator.model)
        applier.apply_vectors(made["mine"])
        applier.generate()
    assert generator.hparams_dict["caa"].system_prompt == MARKER
    assert applier.settings.system_prompt == MARKER
    assert MARKER not in caplog.text
    assert holding(desk.folder, MARKER) == []


def test_a_secret_in_a_killed_runs_journal_is_none(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    desk.run("vectors_generate.py")
    monkeypatch.setattr("steer.applier.record", None)  # fails when all is answered
    with pytest.raises(TypeError):
        desk.run("vectors_apply.py", system_prompt=SECRET_PROMPT)
    assert (desk.out / "answers/mine_partial.jsonl").is_file()
    assert holding(desk.folder, MARKER) == []


@pytest.mark.parametrize("traceback", ["", "1"])
def test_an_error_shows_no_secret(desk: Desk, monkeypatch: pytest.MonkeyPatch, traceback: str):
    monkeypatch.setenv("STEER_TRACEBACK", traceback)
    desk.run("vectors_generate.py", layers="${oc.env:HF_TOKEN}")
    assert desk.status == 1
    assert "layers must be a list of whole numbers or null: got '***'" in desk.said
    assert MARKER not in desk.said


@pytest.mark.parametrize(
    "argument", [f"api_key={MARKER}", f"++HF_TOKEN={MARKER}", f"model_kwargs.token={MARKER}"]
)
def test_a_secret_on_the_command_line_is_refused_and_not_repeated(desk: Desk, argument: str):
    desk.run("vectors_generate.py", argument)
    assert desk.status == 1
    assert "keys and tokens come from the environment only" in desk.said
    assert MARKER not in desk.said


# ---- the parts ---------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MY_SECRET", MARKER)
    return MARKER


def test_secrets_are_taken_out_at_any_depth_of_a_copy(secret: str):
    value = {"a": [f"x{secret}y", 3, None], secret: {"b": (secret,)}}
    assert redacted(value) == {"a": ["x***y", 3, None], "***": {"b": ["***"]}}
    assert value["a"][0] == f"x{secret}y"


def test_the_longer_of_two_secrets_goes_first(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "secret-one")
    monkeypatch.setenv("B_KEY", "secret-one-and-more")
    assert redacted("secret-one-and-more secret-one") == "*** ***"


def test_short_values_and_other_variables_are_no_secrets(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_KEY", "the")
    monkeypatch.setenv("A_PLACE", "somewhere-far")
    assert redacted("the somewhere-far") == "the somewhere-far"


def test_a_log_line_and_its_traceback_hold_no_secret(secret: str):
    try:
        raise ValueError(secret)
    except ValueError:
        record = logging.LogRecord(
            "steer", logging.INFO, __file__, 1, "got %s", (secret,), sys.exc_info()
        )
    line = RedactingFormatter("%(message)s").format(record)
    assert line.startswith("got ***\n")
    assert "ValueError: ***" in line
    assert secret not in line


@pytest.mark.parametrize(
    "key, secret",
    [
        *((key, True) for key in ("api_key", "HF_TOKEN", "token", "apikey", "np_api_key")),
        *((key, True) for key in ("password", "client_secret", "use_auth_token")),
        *((key, False) for key in ("eos_token_id", "max_new_tokens", "pad_token_id", "keyboard")),
    ],
)
def test_which_keys_are_those_of_secrets(key: str, secret: bool):
    assert is_secret_key(key) == secret


def test_a_key_without_a_value_gives_nothing_away():
    refuse_secrets({"api_key": None, "token": "", "deep": {"token": True}}, "here")
