"""The vLLM engine over several processes says what one says (make test-vllm)."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

from vllm_desk import ALL, RECIPES, alone, answers_of, engine_of, llama, prompts_of, saved

pytestmark = pytest.mark.slow
EAGER = {"vllm_enforce_eager": True}


@pytest.mark.parametrize(
    "options",
    [
        {"vllm_tensor_parallel_size": 2},
        {"vllm_tensor_parallel_size": 2, **EAGER},
        {"vllm_pipeline_parallel_size": 2, **EAGER},
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
