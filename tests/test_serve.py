"""Answers of the server, through OpenAI's own client."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from serving import (
    MODEL,
    VECTORS,
    Served,
    chat_ids,
    ids_of_text,
    serving,
    text_of,
    truth,
    until,
    write_vectors,
)
from tiny import kept

from steer.models.continuous import ContinuousDecoder
from steer.serve.engine import Engine
from steer.serve.errors import Refusal
from steer.serve.registry import Registry
from steer.serve.settings import ServeSettings

HELLO: Any = [{"role": "user", "content": "Hello there"}]
PROMPT = chat_ids("Hello there")


@pytest.fixture(scope="module")
def served(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tiny_folder, tmp_path_factory.mktemp("serve"), batch_size="4") as it:
        yield it


def chat(served: Served, steering: Any = None, **options: Any) -> Any:
    given = {"model": MODEL, "messages": HELLO, "temperature": 0, "max_tokens": 12} | options
    body = {} if steering is None else {"steering": steering}
    return served.client().chat.completions.create(**given, extra_body=body)


def test_an_unsteered_chat_is_the_models_own(served: Served):
    ids = truth(PROMPT, 12)
    answer = chat(served)
    assert answer.choices[0].message.content == text_of(ids)
    assert answer.choices[0].finish_reason == ("stop" if ids[-1] == 256 else "length")
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(PROMPT), len(ids))
    assert answer.steering == {"vectors": [], "layers": {}, "counts_of": "this request"}


def test_a_steered_chat_is_that_of_a_plain_hook_and_says_what_was_done(served: Served):
    ids = truth(PROMPT, 12, {layer: -1.5 * v for layer, v in VECTORS["set/cold"].items()})
    answer = chat(served, {"vectors": [{"name": "set/cold", "strength": -1.5}]})
    assert answer.choices[0].message.content == text_of(ids) != text_of(truth(PROMPT, 12))
    (vector,) = answer.steering["vectors"]
    assert (vector["name"], vector["strength"], vector["layers"]) == ("set/cold", -1.5, [0, 2])
    for counts in answer.steering["layers"].values():
        # The last token is never read.
        assert counts["tokens"] == counts["tokens_changed"] == len(PROMPT) + len(ids) - 1
        assert counts["passes"] == len(ids)
        assert counts["dose"] > 0
    assert list(answer.steering["layers"]) == ["0", "2"]


def test_a_name_alone_is_the_vector_once_at_all_its_layers(served: Served):
    ids = truth(PROMPT, 12, VECTORS["warm"])
    assert chat(served, "warm").choices[0].message.content == text_of(ids)


def test_layers_and_several_vectors_add_up(served: Served):
    one = {"name": "set/cold", "layers": [2], "strength": 2}
    added = {1: VECTORS["warm"][1], 2: 2 * VECTORS["set/cold"][2]}
    answer = chat(served, {"vectors": [one, {"name": "warm"}]})
    assert answer.choices[0].message.content == text_of(truth(PROMPT, 12, added))


def test_positions_count_only_what_they_name(served: Served):
    answer = chat(served, {"vectors": [{"name": "warm", "positions": "prompt"}]})
    assert answer.steering["layers"]["1"]["tokens"] == len(PROMPT)
    # The one new token is never read: nothing was there to steer, and the answer says so.
    answer = chat(served, {"vectors": [{"name": "warm", "positions": "generated"}]}, max_tokens=1)
    assert answer.choices[0].message.content == text_of(truth(PROMPT, 1))
    assert answer.steering["layers"]["1"]["tokens"] == 0


def test_a_completion_goes_on_with_a_text(served: Served):
    client = served.client()
    texts = ["Once upon", "No"]
    body = {"steering": "warm"}
    answer = client.completions.create(
        model=MODEL, prompt=texts, temperature=0, max_tokens=9, extra_body=body
    )
    ids = [truth(ids_of_text(text), 9, VECTORS["warm"]) for text in texts]
    assert [choice.text for choice in answer.choices] == [text_of(one) for one in ids]
    assert answer.usage.total_tokens == sum(map(len, texts)) + sum(map(len, ids))


def test_a_stream_brings_the_same_text_and_the_report_at_its_end(served: Served):
    whole = chat(served, "warm", max_tokens=30)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(chat(served, "warm", max_tokens=30, **options))
    text = "".join(c.choices[0].delta.content for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 5
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-2].steering == whole.steering
    assert chunks[-1].usage == whole.usage


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(served: Served):
    text = text_of(truth(PROMPT, 30))
    stop = text[6:9]
    expected = text.split(stop)[0]
    answer = chat(served, max_tokens=30, stop=["never said", stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    stream = chat(served, max_tokens=30, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content for chunk in stream) == expected


@pytest.mark.slow
def test_a_seed_gives_the_same_answers_each_unlike_the_other(served: Served):
    options = {"temperature": 1.0, "n": 3, "seed": -5, "max_tokens": 20}
    first, second = ([c.message.content for c in chat(served, **options).choices] for _ in "ab")
    assert first == second
    assert len(set(first)) == 3
    other = chat(served, **(options | {"seed": 6}))
    assert [c.message.content for c in other.choices] != first


def test_a_system_prompt_and_turns_stand_as_the_template_has_them(served: Served):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One"}]},
        {"role": "assistant", "content": "Two"},
        {"role": "user", "content": "Three"},
    ]
    text = "<system>Be brief.\n<user>One\n<assistant>Two\n<user>Three\n<assistant>"
    answer = chat(served, messages=turns)
    assert answer.choices[0].message.content == text_of(truth(ids_of_text(text), 12))


@pytest.mark.slow
def test_a_vector_that_is_unloaded_steers_those_who_use_it_to_their_end(served: Served):
    client = served.client()
    stream = chat(served, "warm", max_tokens=120, stream=True)
    text = next(chunk.choices[0].delta.content for chunk in stream if chunk.choices)
    assert client.delete("/steering/vectors/warm", cast_to=object)["deleted"]
    with pytest.raises(openai.NotFoundError, match="unknown vector 'warm'"):
        chat(served, "warm")
    text += "".join(chunk.choices[0].delta.content for chunk in stream if chunk.choices)
    assert text == text_of(truth(PROMPT, 120, VECTORS["warm"]))
    client.post("/steering/vectors", body={"name": "warm"}, cast_to=object)
    assert "warm" in [one["id"] for one in listing(served)["data"]]
    chat(served, "warm")


def test_without_names_all_vectors_that_fit_are_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    wrong = {"deep": {7: torch.ones(16)}, "wide": {1: torch.ones(8)}}
    folder = str(write_vectors(tmp_path, VECTORS | wrong))
    registry = Registry(ServeSettings(vector_dir=folder), kept("llama"))
    with caplog.at_level("INFO"):
        registry.load_first()
    assert sorted(registry.loaded) == sorted(VECTORS)
    for name in wrong:
        assert f"{name} is not loaded: " in caplog.text
    named = Registry(ServeSettings(vector_dir=folder, vectors=["warm", "wide"]), kept("llama"))
    with pytest.raises(Refusal, match="its shape is"):
        named.load_first()


def listing(served: Served) -> dict[str, Any]:
    return served.client().get("/steering/vectors", cast_to=object)


@pytest.mark.slow
def test_a_vector_that_came_later_is_found_loaded_and_loaded_anew(served: Served):
    client = served.client()
    folder = served.vectors / "new"
    folder.mkdir()
    for strength in (1.0, -1.0):
        torch.save(strength * VECTORS["late"][2], folder / "layer_2.pt")
        client.post("/steering/vectors", body={"name": "new"}, cast_to=object)
        ids = truth(PROMPT, 12, {2: strength * VECTORS["late"][2]})
        assert chat(served, "new").choices[0].message.content == text_of(ids)
    client.delete("/steering/vectors/new", cast_to=object)
    assert "new" in listing(served)["available"]


@pytest.mark.slow
def test_rows_of_clients_who_leave_are_free_again(served: Served):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 1000, "n": 8}
    for stream in (True, False):
        # More than go into a batch: some leave while they wait.
        with pytest.raises(httpx.ReadTimeout):
            leave_early(served, body | {"stream": stream})
        until(lambda: served.number("steer_running_answers") == 0)
        assert served.number("steer_waiting_answers") == 0
    assert chat(served).choices[0].message.content == text_of(truth(PROMPT, 12))


def leave_early(served: Served, body: dict[str, Any]) -> None:
    with httpx.stream(
        "POST",
        f"{served.url}/v1/chat/completions",
        json=body,
        headers=served.headers,
        timeout=httpx.Timeout(30, read=0.3),
    ) as answer:
        for _ in answer.iter_lines():
            until(lambda: served.number("steer_running_answers") > 0)
            raise httpx.ReadTimeout("seen enough")


@pytest.mark.slow
def test_metrics_count_what_was_done(served: Served):
    names = ("steer_answer_tokens_total", "steer_prompt_tokens_total")
    ok = 'steer_requests_total{route="chat",status="200"}'
    bad = 'steer_requests_total{route="chat",status="400"}'
    before = [served.number(name) for name in (*names, ok)]
    answer = chat(served)
    with pytest.raises(openai.BadRequestError):
        chat(served, n=0)
    new = [answer.usage.completion_tokens, len(PROMPT), 1]
    after = [served.number(name) for name in (*names, ok)]
    assert [b - a for a, b in zip(before, after, strict=True)] == new
    assert served.number(bad) >= 1
    assert served.number("steer_loaded_vectors") == len(VECTORS)


@pytest.mark.slow
def test_a_step_that_fails_is_said_and_the_next_request_is_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(ContinuousDecoder, "_say", lambda *_: 1 / 0)
        with pytest.raises(openai.InternalServerError, match="ZeroDivisionError"):
            chat(served)
        stream = chat(served, stream=True)
        with pytest.raises(openai.APIError, match="ZeroDivisionError"):
            list(stream)
    assert chat(served).choices[0].message.content == text_of(truth(PROMPT, 12))


@pytest.mark.slow
def test_an_engine_that_has_ended_says_so(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Engine, "fatal", (ZeroDivisionError,))
    with serving(tiny_folder, tmp_path) as it:
        assert httpx.get(f"{it.url}/health").status_code == 200
        with monkeypatch.context() as patch:
            patch.setattr(ContinuousDecoder, "_say", lambda *_: 1 / 0)
            with pytest.raises(openai.InternalServerError, match="can answer no more"):
                chat(it)
        until(lambda: httpx.get(f"{it.url}/health").status_code == 503)
        with pytest.raises(openai.InternalServerError, match="can answer no more"):
            chat(it)
