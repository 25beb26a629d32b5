"""The client of Neuronpedia, against a local server that answers as its API is documented."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from neuronpedia_server import KEY, MODEL, SAE, Server, result, serving

from steer.saes.__main__ import main
from steer.saes.neuronpedia import (
    get_feature_description,
    search_for_explanations,
    search_neuronpedia,
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NP_API_KEY", KEY)
    with serving() as server:
        monkeypatch.setenv("NEURONPEDIA_URL", server.url)
        yield server


def test_search_asks_as_documented_and_gives_the_fields_promised(server: Server, tmp_path: Path):
    found = search_for_explanations(MODEL, SAE, "ocean", tmp_path / "found.json")
    body = {"modelId": MODEL, "layers": [SAE], "query": "ocean"}
    assert server.asked == [("POST", "/api/explanation/search", body, KEY)]
    assert found[2] == {k: v for k, v in result(3, 0.87).items() if k != "neuron"}
    assert json.loads((tmp_path / "found.json").read_text()) == found


def test_only_features_that_are_asked_for_are_fetched_and_each_once(server: Server, tmp_path: Path):
    first = get_feature_description(MODEL, SAE, [3, 5], tmp_path)
    assert first[5][0]["description"] == "Explains 5"
    assert first[5][0]["feature_id"] == 5
    assert [path for _, path, _, _ in server.asked] == [
        f"/api/feature/{MODEL}/{SAE}/3",
        f"/api/feature/{MODEL}/{SAE}/5",
    ]
    second = get_feature_description(MODEL, SAE, [5, 6, 5], tmp_path)
    assert list(second) == [5, 6]
    assert len(server.asked) == 3
    kept = json.loads((tmp_path / f"neuronpedia_description_{MODEL}_{SAE}.json").read_text())
    assert sorted(kept) == ["3", "5", "6"]


def test_found_features_come_with_strength_and_examples(server: Server):
    (first, second) = search_neuronpedia(f"{MODEL}/{SAE}", "ocean", 5)
    assert (first.feature.id, second.feature.id) == (7, 3)
    assert first.score == pytest.approx(0.83)
    assert first.reason == "is explained as 'the sea, 7'"
    assert first.feature.max_activation == 40.5
    (example,) = first.feature.examples
    assert (example.before, example.token, example.after) == ("The deep", " sea", "!")


def test_no_key_is_sent_where_none_is_set(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NP_API_KEY")
    search_for_explanations(MODEL, SAE, "ocean")
    assert server.asked[0][3] is None


@pytest.mark.parametrize(
    "status, text, said",
    [
        (401, "", "does not accept the key in NP_API_KEY"),
        (404, "", "check modelId and saeId"),
        (400, f"bad {KEY}", r"400 to /api/explanation/search: bad \*\*\*$"),
        (302, "", "answers 302"),
        (200, "<html>", "is not JSON"),
        (200, '{"results": 3}', "an answer without results"),
    ],
)
def test_a_refusal_is_said_in_words_and_without_the_key(
    server: Server, status: int, text: str, said: str
):
    server.answers = [(status, text, {"Location": "http://127.0.0.1:1/"})]
    with pytest.raises(ValueError, match=said) as error:
        search_for_explanations(MODEL, SAE, "ocean")
    assert KEY not in str(error.value)
    assert len(server.asked) == 1


def test_a_key_is_asked_for_where_none_is_set(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NP_API_KEY")
    server.answers = [(403, "", {})]
    with pytest.raises(ValueError, match="asks for a key: set NP_API_KEY"):
        search_for_explanations(MODEL, SAE, "ocean")


def test_a_busy_server_is_asked_again_but_not_for_ever(
    server: Server, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    busy = (429, "", {"Retry-After": "0"})
    server.answers = [busy, (503, "", {"Retry-After": "0"})]
    assert search_for_explanations(MODEL, SAE, "ocean")
    assert len(server.asked) == 3
    assert "is busy (429)" in caplog.text
    server.answers = [busy] * 5
    with pytest.raises(ValueError, match="limit of requests an hour is reached"):
        search_for_explanations(MODEL, SAE, "ocean")
    assert len(server.asked) == 6
    assert KEY not in caplog.text


def test_a_long_wait_is_not_waited_for(server: Server):
    server.answers = [(429, "", {"Retry-After": "3600"})]
    with pytest.raises(ValueError, match="try again later"):
        search_for_explanations(MODEL, SAE, "ocean")


def test_a_feature_that_is_not_there(server: Server, tmp_path: Path):
    with pytest.raises(ValueError, match=f"no feature 200 of {MODEL}/{SAE}"):
        get_feature_description(MODEL, SAE, [3, 200], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_feature_in_another_form(server: Server):
    usual = json.dumps({"results": [result(7, 0.9)]})
    server.answers = [(200, usual, {}), (200, json.dumps({"activations": [{"tokens": []}]}), {})]
    with pytest.raises(ValueError, match="feature 7 in an unknown form"):
        search_neuronpedia(f"{MODEL}/{SAE}", "ocean")


def test_a_file_of_descriptions_that_is_something_else_is_left_alone(
    server: Server, tmp_path: Path
):
    path = tmp_path / f"neuronpedia_description_{MODEL}_{SAE}.json"
    path.write_text('{"feature_id": {"0": 3}}')
    with pytest.raises(ValueError, match="does not hold descriptions by feature id"):
        get_feature_description(MODEL, SAE, [3], tmp_path)
    assert path.read_text() == '{"feature_id": {"0": 3}}'


def test_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NEURONPEDIA_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match=r"cannot be reached.*are you online"):
        search_for_explanations(MODEL, SAE, "ocean")


def test_a_key_is_not_sent_in_the_open(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NP_API_KEY", KEY)
    monkeypatch.setenv("NEURONPEDIA_URL", "http://example.org")
    with pytest.raises(ValueError, match="must begin with https://"):
        search_for_explanations(MODEL, SAE, "ocean")


@pytest.mark.parametrize("source", ["gemma-2-9b", "/x", "a/b/c", ""])
def test_a_source_is_a_model_and_an_sae(source: str):
    with pytest.raises(ValueError, match="must be modelId/saeId"):
        search_neuronpedia(source, "ocean")


def test_nothing_found_and_nothing_asked(server: Server, capsys: pytest.CaptureFixture[str]):
    server.answers = [(200, '{"results": []}', {})]
    assert main(["search", "ocean", "--neuronpedia", f"{MODEL}/{SAE}"]) == 1
    assert capsys.readouterr().err.startswith("error: Neuronpedia knows no feature")
    main(["search", "ocean", "--neuronpedia", f"{MODEL}/{SAE}", "-k", "1"])
    assert "The deep «sea»!" in capsys.readouterr().out
