"""The vLLM engine says what transformers with hooks says, request by request (make test-vllm)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

import torch
from desk import Desk
from vllm_desk import (
    ALL,
    CHUNKED,
    GREEDY,
    RECIPES,
    VECTORS,
    alone,
    answers_of,
    engine_of,
    llama,
    prompts_of,
    saved,
)

from steer.engines import vllm as engines
from steer.engines.vllm import VLLMEngine
from steer.models import Add, EditLayer, SteeredModel

pytestmark = pytest.mark.slow
# Several times what one pass reads, so that prompts are read in parts and beside answers.
LENGTHS = (5, 37, 70)


@pytest.fixture(scope="module")
def model() -> SteeredModel:
    return llama()


@pytest.fixture(scope="module")
def path(model: SteeredModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(model, tmp_path_factory.mktemp("vllm") / "llama")


@pytest.fixture(scope="module", params=[False, True], ids=["compiled", "eager"])
def engine(request: pytest.FixtureRequest, model: SteeredModel, path: Path) -> Iterator[VLLMEngine]:
    options = {"vllm_enforce_eager": request.param, "vllm_params": CHUNKED, "vllm_slots": 16}
    made = engine_of(model, path, ALL, **options)
    yield made
    made.close()


def test_a_batch_of_mixed_recipes_says_what_each_request_says_alone(
    engine: VLLMEngine, model: SteeredModel
):
    rows = [(prompt, recipe) for recipe in ALL for prompt in prompts_of(LENGTHS)]
    wanted = [alone(model, prompt, recipe) for prompt, recipe in rows]
    found = answers_of(engine, *zip(*rows, strict=True))
    assert found == wanted
    unsteered = wanted[: len(LENGTHS)]
    for number, name in enumerate(RECIPES):
        mine = wanted[number * len(LENGTHS) :][: len(LENGTHS)]
        assert (mine == unsteered) == (name == "none"), f"{name} is not seen in the answers"


@pytest.mark.parametrize("name", ["all layers", "prompt, then other", "two of a layer", "clamp"])
def test_the_graph_counts_what_hooks_count(engine: VLLMEngine, model: SteeredModel, name: str):
    found, wanted = {}, {}
    # A prompt of its own, since what the prefix cache holds is not read again.
    (prompt,) = prompts_of([40 + len(name)])
    assert answers_of(engine, [prompt], [RECIPES[name]], found) == [
        alone(model, prompt, RECIPES[name], wanted)
    ]
    assert found.keys() == wanted.keys()
    for place, counts in found.items():
        ours, theirs = counts.summary(), wanted[place].summary()
        assert (ours["tokens"], ours["tokens_changed"]) == (
            theirs["tokens"],
            theirs["tokens_changed"],
        )
        assert ours["dose"] == pytest.approx(theirs["dose"], rel=1e-3)


def test_the_strength_changes_in_a_running_engine(engine: VLLMEngine, model: SteeredModel):
    prompts = prompts_of([12])
    for strength in (0.0, 2.0, -2.0, 5.0):
        recipe = [EditLayer(0, Add(VECTORS[11], strength))]
        assert engine.fits(recipe)
        assert answers_of(engine, prompts, [recipe]) == [alone(model, prompts[0], recipe)]


def test_more_recipes_than_slots_wait_for_each_other(engine: VLLMEngine, model: SteeredModel):
    recipes = [[EditLayer(1, Add(VECTORS[n % 12], 1.0 + n))] for n in range(40)]
    prompts, tally = prompts_of(range(5, 45)), {}
    found = answers_of(engine, prompts, recipes, tally)
    assert found == [alone(model, *given) for given in zip(prompts, recipes, strict=True)]
    # The last token of an answer is not read.
    assert tally[1].summary()["tokens"] == sum(map(len, prompts)) + 40 * (len(found[0]) - 1)


def read_twice(engine: VLLMEngine, prompt: list[int], first: str, second: str) -> int:
    """How many tokens the second of two recipes steered, of one prompt after the other."""
    answers_of(engine, [prompt], [RECIPES[first]])
    tally = {}
    answers_of(engine, [prompt], [RECIPES[second]], tally)
    return tally[1].summary()["tokens"]


def test_keys_and_values_are_never_those_of_another_steering(
    engine: VLLMEngine, model: SteeredModel, monkeypatch: pytest.MonkeyPatch
):
    prompts = iter(ids for ids in prompts_of([64] * 4))
    whole = 64 + GREEDY["max_new_tokens"] - 1
    assert read_twice(engine, next(prompts), "add", "add more") == whole
    # The cache is in use: what the same recipe has read is not read again,
    assert read_twice(engine, next(prompts), "add", "add") == whole - 32
    # and without a salt of its own, a recipe is given what another one has read.
    monkeypatch.setattr(engines, "salt_of", lambda *_: "one for all")
    prompt = next(prompts)
    assert read_twice(engine, prompt, "add", "add more") == whole - 32
    wrong = answers_of(engine, [prompt], [RECIPES["all layers"]])
    assert wrong != [alone(model, prompt, RECIPES["all layers"])]


def test_an_answer_steered_from_its_prompts_end_does_not_serve_as_a_prompt(
    engine: VLLMEngine, model: SteeredModel
):
    recipe = RECIPES["from prompt end"]
    (prompt,) = prompts_of([33])
    first = alone(model, prompt, recipe, max_new_tokens=40, min_new_tokens=40)
    longer = {"max_new_tokens": 40, "min_new_tokens": 40}
    assert answers_of(engine, [prompt], [recipe], **longer) == [first]
    again = [*prompt, *first]
    assert answers_of(engine, [again], [recipe]) == [alone(model, again, recipe)]


@pytest.mark.parametrize("name", ["none", "all layers", "generated"])
def test_answers_given_are_scored_as_transformers_scores_them(
    engine: VLLMEngine, model: SteeredModel, name: str
):
    from steer.likelihood import answer_log_probs

    prompts, answers = prompts_of([9, 40]), prompts_of([6, 11])
    found = engine.log_probs(prompts, answers, RECIPES[name])
    wanted = answer_log_probs(model, prompts, answers, interventions=RECIPES[name])
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)


def test_what_the_engine_was_not_started_for_is_refused_by_the_worker(
    engine: VLLMEngine, model: SteeredModel
):
    misfit = [RECIPES["add"][0], EditLayer(0, RECIPES["clamp"][0].edit)]
    assert not engine.fits(misfit)
    prompts = prompts_of([8])
    with pytest.raises(RuntimeError, match=r"worker 0: ValueError: at 0: the graph has the stages"):
        answers_of(engine, prompts, [misfit])
    assert answers_of(engine, prompts, [RECIPES["add"]]) == [
        alone(model, prompts[0], RECIPES["add"])
    ]


def test_a_request_stopped_early_leaves_nothing_behind(engine: VLLMEngine, model: SteeredModel):
    prompts = prompts_of([8, 9, 10])
    given = engine.batches(prompts, GREEDY, [RECIPES["add"]] * 3, [(0,)] * 3)
    next(given)
    given.close()
    assert not engine.llm.llm_engine.has_unfinished_requests()
    assert not any(engine.room.requests.values())
    assert answers_of(engine, prompts[:1], [[]]) == [alone(model, prompts[0], [])]


@pytest.mark.parametrize("script", ["steering.py", "vectors_apply.py"])
def test_scripts_write_the_same_with_either_engine(
    script: str,
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    desk = Desk(tmp_path, path, monkeypatch, capsys)
    found = {}
    for engine in ("hf", "vllm"):
        desk.run("vectors_generate.py", steer_vector_output_dirs="out/vectors")
        assert desk.status == 0, desk.said
        way = {"vllm_enable": "true"} if engine == "vllm" else {}
        more = {"generate_orig_output": "true", "eval_methods": "[ppl]", "report": "full"}
        printed = desk.run(script, **more, **way)
        assert desk.status == 0, desk.said
        run = json.loads((desk.out / "answers/mine_run.json").read_text())
        scores = json.loads((desk.out / "answers/mine_evaluation.json").read_text())
        found[engine] = (desk.answers(), run["report"], scores["perplexity"], printed)
        shutil.rmtree(desk.out)
    ours, theirs = found["vllm"], found["hf"]
    assert ours[0] == theirs[0]
    assert any(row["pred"] != row["orig_pred"] for row in ours[0])
    assert ours[2] == pytest.approx(theirs[2], rel=1e-3)
    assert "Steering report" in ours[3]
    layer = [report["layers"]["1"] for report in (ours[1], theirs[1])]
    assert layer[0]["tokens"] == layer[1]["tokens"] > 0
