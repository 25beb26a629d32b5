"""The vLLM engine over several processes says what one says (make test-vllm)."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from tiny import ids_of
from vllm_desk import ALL, GREEDY, RECIPES, alone, answers_of, engine_of, llama, prompts_of, saved

from steer.engines.of_run import EngineOfRun
from steer.engines.options import EngineOptions
from steer.engines.replicas import Replicas
from steer.likelihood import answer_log_probs
from steer.models import GENERATED, Add, EditLayer
from steer.models.load import ModelSource

pytestmark = pytest.mark.slow
EAGER = {"vllm_enforce_eager": True}


@pytest.mark.parametrize(
    "options",
    [
        {"vllm_tensor_parallel_size": 2},
        {"vllm_tensor_parallel_size": 2, **EAGER},
        # vLLM for CPUs cannot do this eagerly: its workers lack buffers that compiling makes.
        {"vllm_pipeline_parallel_size": 2},
    ],
    ids=["tensor parallel", "tensor parallel, eager", "pipeline parallel"],
)
def test_two_workers_say_what_transformers_says(tmp_path: Path, options: dict[str, Any]):
    model = llama()
    engine = engine_of(model, saved(model, tmp_path / "llama"), ALL, **options)
    try:
        rows = [(prompt, recipe) for recipe in ALL for prompt in prompts_of([5, 40])]
        tally = {}
        found = answers_of(engine, *zip(*rows, strict=True), tally)
        assert found == [alone(model, prompt, recipe) for prompt, recipe in rows]
        # Each layer is counted once, however many workers share it.
        wanted = {}
        for prompt, recipe in rows:
            alone(model, prompt, recipe, wanted)
        counts = {place: one.summary()["tokens"] for place, one in tally.items()}
        assert counts == {place: one.summary()["tokens"] for place, one in wanted.items()}
        misfit = [*RECIPES["add"], *RECIPES["clamp"], *RECIPES["clamp"]]
        with pytest.raises(RuntimeError, match="worker 1: ValueError: at 3: the graph has"):
            answers_of(engine, prompts_of([5]), [misfit])
        (again,) = answers_of(engine, prompts_of([5]), [RECIPES["all layers"]])
        assert again == alone(model, prompts_of([5])[0], RECIPES["all layers"])
    finally:
        engine.close()


@pytest.mark.parametrize("kind", ["pipeline", "data"])
def test_the_embedded_model_in_two_parts_and_twice(kind: str):
    source = ModelSource(dtype="float32", device="cpu")
    model = source.load()
    eager = EAGER if kind == "data" else {}
    options = EngineOptions(engine="vllm", vllm_max_model_len=256, **eager)
    setattr(options, f"vllm_{kind}_parallel_size", 2)
    vectors = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(0))
    recipes = [
        [],
        [EditLayer(layer, Add(vectors[0], 0.2)) for layer in (3, 27)],
        [EditLayer(20, Add(vectors[1], 2.0), GENERATED)],
    ] * 3
    prompts = ids_of(range(4, 13))
    engine = EngineOfRun(options, source, model)
    try:
        started = engine.ready_for(recipes, GREEDY)
        assert isinstance(started, Replicas) == (kind == "data")
        tally, wanted = {}, {}
        found = answers_of(started, prompts, recipes, tally)
        assert found == [alone(model, *row, wanted) for row in zip(prompts, recipes, strict=True)]
        counts = {place: one.summary()["tokens"] for place, one in tally.items()}
        assert counts == {place: one.summary()["tokens"] for place, one in wanted.items()}
        given = started.log_probs(prompts, prompts[::-1], recipes[1])
        for found, one in zip(
            given,
            answer_log_probs(model, prompts, prompts[::-1], interventions=recipes[1]),
            strict=True,
        ):
            torch.testing.assert_close(found, one, rtol=0, atol=1e-3)
    finally:
        engine.close()
