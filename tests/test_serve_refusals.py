"""What the server does not do, and what it says of it."""

import json
import logging
import os
import pickle
import runpy
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from serving import KEY, MODEL, Served, serving, until
from tiny import kept

from steer.models import SteeredModel
from steer.models.continuous import ContinuousDecoder
from steer.serve.decoders import engine_of
from steer.serve.keys import Keys
from steer.serve.reading import Reader
from steer.serve.schema import CompletionRequest
from steer.serve.settings import ServeSettings
from steer.serve.steering import Steering

LIMITS = {
    "max_loaded": 4,
    "max_vector_mb": 0.01,
    "max_vectors": 2,
    "max_strength": 3,
    "max_prompt_tokens": 50,
    "max_answer_tokens": 40,
    "max_choices": 4,
    "max_waiting": 6,
    "max_body_kb": 20,
}


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_folder, tmp_path_factory.mktemp("serve"), batch_size="2", **LIMITS) as it:
        yield it


def body(**more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi"}]
    return {"model": MODEL, "messages": turns, "max_tokens": 2} | more


def refused(served: Served, given: Any, status: int = 400, path: str = "chat/completions") -> Any:
    """The error of a request that must be refused, in the shape of OpenAI's."""
    answer = served.post(f"/v1/{path}", given)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert error["message"]
    return error


def vectors(*uses: dict[str, Any]) -> dict[str, Any]:
    return body(steering={"vectors": list(uses)})


WRONG: list[tuple[dict[str, Any], str]] = [
    (body(tools=[]), "tools"),
    (body(logprobs=True), "logprobs"),
    (body(response_format={"type": "json_object"}), "response_format"),
    (body(frequency_penalty=0.5), "frequency_penalty"),
    (body(n=0), "n"),
    (body(n=True), "n"),
    (body(n=5), "n"),
    (body(temperature=2.1), "temperature"),
    (body(temperature="hot"), "temperature"),
    (body(top_p=0), "top_p"),
    (body(max_tokens=0), "max_tokens"),
    (body(max_tokens=41), "max_tokens"),
    (body(stop=["a"] * 5), "stop"),
    (body(stop=["a", ""]), "stop.1"),
    (body(seed=1.5), "seed"),
    (body(messages=[]), "messages"),
    (body(messages=[{"role": "system", "content": "x"}]), "messages"),
    (body(messages=[{"role": "user", "content": "x" * 60}]), "messages"),
    (body(messages=[{"role": "tool", "content": "x"}]), "messages.0.role"),
    (body(messages=[{"role": "user", "content": "x", "name": "Ann"}]), "messages.0.name"),
    (
        body(messages=[{"role": "user", "content": [{"type": "image_url", "text": ""}]}]),
        "messages.0.content.0.type",
    ),
    (body(steering=3), "steering"),
    (body(steering={"path": "/etc/passwd"}), "steering.path"),
    (vectors({"name": "warm", "vector": [1.0]}), "steering.vectors.0.vector"),
    (vectors({"name": "warm", "strength": True}), "steering.vectors.0.strength"),
    (vectors({"name": "warm", "strength": 3.1}), "steering.vectors.0.strength"),
    (vectors({"name": "warm"}, {"name": "late", "strength": -9}), "steering.vectors.1.strength"),
    (vectors({"name": "warm", "layers": [0]}), "steering.vectors.0.layers"),
    (vectors({"name": "warm", "layers": []}), "steering.vectors.0"),
    (vectors({"name": "warm", "layers": [1, 1]}), "steering.vectors.0"),
    (vectors({"name": "warm", "positions": "odd"}), "steering.vectors.0"),
    (vectors({"name": "warm", "operation": "rotate"}), "steering.vectors.0"),
    (vectors({"name": "warm"}, {"name": "warm"}), "steering.vectors"),
    (vectors(*({"name": name} for name in ("warm", "late", "set/cold"))), "steering.vectors"),
]


@pytest.mark.parametrize(("given", "param"), WRONG, ids=[param for _, param in WRONG])
def test_a_field_that_is_wrong_is_named(served: Served, given: dict[str, Any], param: str):
    assert refused(served, given)["param"] == param


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"[" * 5000, b"null", b"[]", b'{"model": NaN}'],
    ids=["empty", "open", "bytes", "deep", "null", "list", "nan"],
)
def test_what_is_no_request_is_refused(served: Served, text: bytes):
    headers = served.headers | {"Content-Type": "application/json"}
    answer = httpx.post(f"{served.url}/v1/chat/completions", content=text, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_no_number_that_is_none_gets_to_the_model(served: Served):
    headers = served.headers | {"Content-Type": "application/json"}
    for number in ("NaN", "Infinity", "1e999"):
        text = json.dumps(vectors({"name": "warm", "strength": 7})).replace("7", number)
        answer = httpx.post(f"{served.url}/v1/chat/completions", content=text, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "steering.vectors.0.strength"


def test_a_request_that_is_too_large_or_no_json_has_a_status_of_its_own(served: Served):
    refused(served, body(user="x" * 30_000), 413)
    plain = httpx.post(f"{served.url}/v1/completions", content="{}", headers=served.headers)
    assert plain.status_code == 415


def test_a_prompt_that_is_too_long_is_named_as_what_it_is(served: Served):
    given = {"model": MODEL, "prompt": ["x", "x" * 60]}
    assert refused(served, given, 400, "completions")["param"] == "prompt"


@pytest.mark.parametrize(
    ("most", "window", "given", "limit"),
    [
        (40, None, {}, 16),
        (8, None, {}, 8),
        (8, None, {"max_tokens": 7}, 7),
        (40, 50, {}, 16),
        (40, 15, {}, 5),
        (40, 40, {"max_tokens": 30}, 30),
    ],
)
def test_a_completion_that_says_no_limit_gets_what_there_is_room_for(
    most: int, window: int | None, given: dict[str, Any], limit: int
):
    settings = ServeSettings(vector_dir="vectors", device="cpu", max_answer_tokens=most)
    request = CompletionRequest(model=MODEL, prompt=["x" * 10], **given)
    reader = Reader(kept("llama"), settings, window)
    (asked,) = reader.asked(reader.plain(request), request, Steering([], []))
    assert asked.limit == limit


def test_routes_and_models_that_are_not_there(served: Served):
    assert refused(served, {}, 404, "embeddings")["type"] == "not_found_error"
    assert refused(served, {}, 405, "models")["message"]
    assert refused(served, body(model="gpt-4o"), 404)["code"] == "model_not_found"
    assert refused(served, body(steering="hot"), 404)["code"] == "vector_not_found"


def test_more_than_may_wait_are_told_to_come_again(served: Served, monkeypatch: pytest.MonkeyPatch):
    go_on, step = threading.Event(), ContinuousDecoder.step

    def held(self: ContinuousDecoder) -> Any:
        assert go_on.wait(30)
        return step(self)

    monkeypatch.setattr(ContinuousDecoder, "step", held)
    url, options = f"{served.url}/v1/chat/completions", {"headers": served.headers}
    with httpx.stream("POST", url, json=body(n=4, stream=True), **options) as first:
        until(lambda: served.number("steer_waiting_answers") == 4)
        answer = served.post("/v1/chat/completions", body(n=3))
        go_on.set()
        assert "[DONE]" in first.read().decode()
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "1"
    assert answer.json()["error"]["code"] == "queue_full"
    assert served.post("/v1/chat/completions", body(n=3)).status_code == 200


# ---- vectors ----


@pytest.mark.parametrize(
    "name",
    ["../warm", "warm/../late", "/etc", "", ".", "set", "warm/layer_1.pt", "warm\0", "~", "link"],
)
def test_a_name_is_no_path(served: Served, tmp_path: Path, name: str):
    (tmp_path / "outside").mkdir(exist_ok=True)
    torch.save(torch.ones(16), tmp_path / "outside" / "layer_1.pt")
    link = served.vectors / "link"
    link.symlink_to(tmp_path / "outside")
    (served.vectors / "file").mkdir(exist_ok=True)
    # One good file makes no folder of a link's good.
    torch.save(torch.ones(16), served.vectors / "file" / "layer_0.pt")
    (served.vectors / "file" / "layer_1.pt").symlink_to(tmp_path / "outside" / "layer_1.pt")
    try:
        for one in (name, "file"):
            error = refused(served, {"name": one}, 404, "steering/vectors")
            assert error["code"] == "vector_not_found"
    finally:
        link.unlink()
        shutil.rmtree(served.vectors / "file")


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def made(served: Served, name: str, **files: Any) -> dict[str, Any]:
    """The error when a folder of these files is loaded."""
    folder = served.vectors / name
    folder.mkdir()
    for file, value in files.items():
        torch.save(value, folder / f"{file}.pt")
    error = refused(served, {"name": name}, 400, "steering/vectors")
    assert str(served.vectors) not in error["message"]
    return error


def test_files_that_are_no_vectors_are_refused_and_run_nothing(served: Served):
    assert "more than tensors" in made(served, "code", layer_1=Harmful())["message"]
    assert not Path("harmed").exists()
    folder = served.vectors / "pickle"
    folder.mkdir()
    (folder / "layer_1.pt").write_bytes(pickle.dumps(Harmful(), protocol=2))
    assert "broken" in refused(served, {"name": "pickle"}, 400, "steering/vectors")["message"]
    assert not Path("harmed").exists()
    assert "16 wide" in made(served, "wide", layer_1=torch.ones(8))["message"]
    assert "layers [7]" in made(served, "deep", layer_7=torch.ones(16))["message"]
    assert "NaN" in made(served, "nan", layer_1=torch.full((16,), torch.nan))["message"]
    assert "not added at one layer" in made(served, "bundle", lm=torch.ones(16))["message"]
    assert "over 0.01" in made(served, "large", layer_1=torch.ones(4096))["message"]


def test_only_so_many_vectors_are_loaded(served: Served):
    for name in ("a", "b"):
        (served.vectors / name).mkdir()
        torch.save(torch.ones(16), served.vectors / name / "layer_1.pt")
    assert served.post("/v1/steering/vectors", {"name": "a"}).status_code == 200
    assert refused(served, {"name": "b"}, 409, "steering/vectors")["code"] == "too_many_vectors"
    # One that is there already takes no more room.
    assert served.post("/v1/steering/vectors", {"name": "a"}).status_code == 200
    url = f"{served.url}/v1/steering/vectors/a"
    assert httpx.delete(url, headers=served.headers).json()["deleted"]
    assert httpx.delete(url, headers=served.headers).status_code == 404
    assert served.post("/v1/steering/vectors", {"name": "b"}).status_code == 200


# ---- keys ----

ROUTES = [
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/steering/vectors"),
    ("POST", "/v1/steering/vectors"),
    ("DELETE", "/v1/steering/vectors/warm"),
    ("GET", "/v1/nothing"),
    ("GET", "/"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nobody_gets_in(served: Served, method: str, path: str):
    wrong = ["", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, f"Basic {KEY}"]
    for header in [None, *wrong]:
        headers = {} if header is None else {"Authorization": header.strip()}
        answer = httpx.request(method, served.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.request(method, served.url + path, headers=served.headers).status_code != 401


def test_health_is_for_everybody(served: Served):
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_keys_come_from_environment_and_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "keys").write_text("from the file, first\n\nfrom the file, second\n")
    monkeypatch.setenv("STEER_API_KEYS", "from the environment, ")
    settings = ServeSettings(vector_dir="vectors", api_key_file=str(tmp_path / "keys"))
    keys = Keys.of(settings)
    for key in ("from the file, first", "from the file, second", "from the environment"):
        assert keys.fit(f"Bearer {key}")
    assert not keys.fit("Bearer ")
    assert not keys.anonymous


def test_a_server_without_keys_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("STEER_API_KEYS", raising=False)
    with pytest.raises(ValueError, match="no keys: put them into STEER_API_KEYS"):
        Keys.of(ServeSettings(vector_dir="vectors"))
    (tmp_path / "keys").write_text("short\n")
    with pytest.raises(ValueError, match="under 16 characters"):
        Keys.of(ServeSettings(vector_dir="vectors", api_key_file=str(tmp_path / "keys")))
    with pytest.raises(ValueError, match="only this machine is served"):
        ServeSettings(vector_dir="vectors", allow_anonymous=True, host="0.0.0.0")


def test_a_server_for_this_machine_may_do_without(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("STEER_API_KEYS", raising=False)
    with serving(tiny_folder, tmp_path, allow_anonymous=True, api_key_file=None) as it:
        assert httpx.get(f"{it.url}/v1/models").json()["data"][0]["id"] == MODEL
        # A page of the web that had its own name lead here.
        answer = httpx.get(f"{it.url}/v1/models", headers={"Host": "evil.example:80"})
        assert answer.status_code == 403


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"max_strenght": 3}, "did you mean 'max_strength'"),
        ({"max_strength": 0}, "max_strength must be above 0"),
        ({"port": 70000}, "port must be 0 to 65535"),
        ({"api_key": "secret"}, "environment only"),
        ({"engine": "tpu"}, "unknown engine 'tpu'"),
        ({"vllm_data_parallel_size": 2}, "start a server for each"),
        ({"engine": "vllm", "batch_size": "4"}, "max_num_seqs: 4"),
        ({"compile": True}, "compile must be false: "),
    ],
)
def test_a_setting_that_is_wrong_is_named(given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        ServeSettings.of({"vector_dir": "vectors"} | given)


def test_a_model_whose_own_settings_cannot_be_followed_is_not_served(model: SteeredModel):
    model.model.generation_config.num_beams = 4
    settings = ServeSettings(vector_dir="vectors", device="cpu")
    with pytest.raises(
        ValueError, match=r"generation_config\.json sets num_beams, which no answer"
    ):
        engine_of(settings, model)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """`python -m steer.serve` in this process, as far as its settings."""
    monkeypatch.setattr("sys.argv", ["serve", *arguments])
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.delenv("STEER_API_KEYS", raising=False)
    runpy.run_module("steer.serve", run_name="__main__")


def test_a_config_file_of_a_users_own_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "mine.yaml").write_text("vector_dir: there\nport: 1234\n")
    monkeypatch.setenv("COLUMNS", "400")
    command(monkeypatch, "--config", str(tmp_path / "mine.yaml"), "--explain-config", "port=99")
    lines = [line.split("│") for line in capsys.readouterr().out.splitlines()]
    shown = {line[1].strip(): [cell.strip() for cell in line[2:4]] for line in lines if line[1:]}
    assert shown["port"] == ["99", "command line"]
    assert shown["max_strength"] == ["20.0", "default"]
    assert shown["vector_dir"][0] == "there"
    assert shown["vector_dir"][1].endswith("mine.yaml")


def test_without_a_key_the_command_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        command(monkeypatch)
    assert capsys.readouterr().err.startswith("error: no keys: put them into STEER_API_KEYS")
