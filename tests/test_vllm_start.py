"""What vLLM would be started with: told without it."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import kept

from steer.engines.of_run import EngineOfRun
from steer.engines.options import EngineOptions
from steer.engines.replicas import VISIBLE, Replicas
from steer.engines.vllm import VLLMEngine
from steer.models.load import ModelSource


def test_weights_and_tokens_are_read_by_vllm_as_they_are_by_transformers(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=dict))
    source = ModelSource(
        model_name_or_path="some/model", revision="v2", trust_remote_code=True, device="cpu"
    )
    options = EngineOptions(engine="vllm", vllm_params={"seed": 3})
    engine = EngineOfRun(options, source, kept("llama")).ready_for([])
    assert isinstance(engine, VLLMEngine)
    given: Any = engine.llm
    assert given["model"] == "some/model"
    assert (given["revision"], given["tokenizer_revision"]) == ("v2", "v2")
    assert (given["trust_remote_code"], given["seed"]) == (True, 3)


@pytest.mark.parametrize(
    ("visible", "there", "each"),
    [("2,5,7", 3, ["2", "5"]), (None, 2, ["0", "1"]), ("", 0, [""] * 2), ("-1", 0, ["-1"] * 2)],
)
def test_each_engine_sees_gpus_of_its_own(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, there: int, each: list[str]
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.delenv(VISIBLE, raising=False)
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)

    def start() -> Any:
        return os.environ[VISIBLE]

    assert Replicas(start, 2, 1).engines == each
    if there:
        with pytest.raises(ValueError, match=f"2 engines of 2 GPUs takes 4, there are {there}"):
            Replicas(start, 2, 2)
    assert os.environ.get(VISIBLE) == visible
