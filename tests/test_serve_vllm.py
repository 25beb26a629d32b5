"""The server over vLLM says what it says over transformers. Takes minutes: vLLM starts once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from serving import Served, serving, until

from steer.models.embedded import EMBEDDED

pytest.importorskip("vllm")
pytestmark = [
    pytest.mark.slow,
    # vLLM's own, and of what it brings.
    pytest.mark.filterwarnings("default"),
]

# Of the layers 15, 15 and 18.
VECTORS = [
    f"{kind}/{EMBEDDED}/{name}/caa_vector"
    for kind, name in (("examples", "sentiment"), ("examples", "refusal"), ("library", "sentiment"))
]
GIVEN: dict[str, Any] = {
    "model_name_or_path": EMBEDDED,
    "vector_dir": "vectors",
    "vectors": VECTORS,
}
SPECS: list[Any] = [
    None,
    VECTORS[0],
    {"vectors": [{"name": VECTORS[0], "strength": -2}]},
    {"vectors": [{"name": VECTORS[1], "strength": 2, "positions": "from_prompt_end"}]},
    {"vectors": [{"name": VECTORS[0], "strength": 2}, {"name": VECTORS[1], "strength": -1}]},
    {"vectors": [{"name": VECTORS[0], "strength": 2, "operation": "add_keeping_norm"}]},
    {"vectors": [{"name": VECTORS[0], "operation": "project_out", "positions": "prompt"}]},
    # Beside the others at a layer that they leave alone.
    {"vectors": [{"name": VECTORS[2], "strength": -2}]},
]
TEXTS = ["Share your view of the concert in the park.", "What can you say about the new bus line?"]


@pytest.fixture(scope="module")
def over_vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = {"vllm_enforce_eager": True, "vllm_max_model_len": 512, "vllm_slots": 8}
    folder = tmp_path_factory.mktemp("vllm")
    with serving(Path(EMBEDDED), folder, engine="vllm", **(GIVEN | options)) as it:
        yield it


@pytest.fixture(scope="module")
def over_hf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(Path(EMBEDDED), tmp_path_factory.mktemp("hf"), **GIVEN) as it:
        yield it


def asked(text: str, spec: Any, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": text}]
    given = {"model": EMBEDDED, "messages": turns, "max_tokens": 16, "temperature": 0} | more
    return given | {"extra_body": {"steering": spec}}


def answers(served: Served, requests: list[dict[str, Any]]) -> list[Any]:
    """All at once."""

    async def everything() -> list[Any]:
        async with served.client(openai.AsyncOpenAI, timeout=300) as client:
            return await asyncio.gather(*(client.chat.completions.create(**r) for r in requests))

    return asyncio.run(everything())


def test_mixed_steering_at_once_gives_the_answers_of_the_other_engine(
    over_vllm: Served, over_hf: Served
):
    requests = [asked(text, spec) for spec in SPECS for text in TEXTS]
    both = [answers(served, requests) for served in (over_vllm, over_hf)]
    texts = [[one.choices[0].message.content for one in some] for some in both]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > len(SPECS)
    for over, under in zip(*both, strict=True):
        assert over.usage == under.usage
        assert over.steering["vectors"] == under.steering["vectors"]
        assert list(over.steering["layers"]) == list(under.steering["layers"])
        for counts in over.steering["layers"].values():
            assert counts["tokens_changed"] > 0
            assert counts["passes"] > 0


def test_a_request_alone_is_counted_to_the_token(over_vllm: Served):
    (answer,) = answers(over_vllm, [asked("Count this, please.", VECTORS[1], max_tokens=9)])
    read = answer.usage.prompt_tokens + answer.usage.completion_tokens - 1
    assert answer.steering["layers"]["15"]["tokens"] == read


def test_more_steerings_than_slots_wait_for_each_other(over_vllm: Served, over_hf: Served):
    specs = [{"vectors": [{"name": VECTORS[0], "strength": n / 4}]} for n in range(-8, 9)]
    requests = [asked(TEXTS[0], spec, max_tokens=8) for spec in specs]
    over, under = (answers(served, requests) for served in (over_vllm, over_hf))
    assert [a.choices[0].message.content for a in over] == [
        a.choices[0].message.content for a in under
    ]


def test_streams_stops_and_those_who_leave(over_vllm: Served):
    client = over_vllm.client()
    (whole,) = answers(over_vllm, [asked(TEXTS[1], VECTORS[0])])
    text = whole.choices[0].message.content
    stream = client.chat.completions.create(**asked(TEXTS[1], VECTORS[0]), stream=True)
    assert "".join(c.choices[0].delta.content for c in stream) == text
    stop = text[20:26]
    answer = client.chat.completions.create(**asked(TEXTS[1], VECTORS[0]), stop=stop)
    assert answer.choices[0].message.content == text.split(stop)[0]
    assert answer.choices[0].finish_reason == "stop"
    body = {"model": EMBEDDED, "prompt": "One, two,", "max_tokens": 400, "stream": True}
    url = f"{over_vllm.url}/v1/completions"
    with httpx.stream("POST", url, json=body, headers=over_vllm.headers) as left:
        next(left.iter_lines())
        assert over_vllm.number("steer_running_answers") == 1
    until(lambda: over_vllm.number("steer_running_answers") == 0)


def test_a_vector_comes_and_goes(over_vllm: Served):
    client = over_vllm.client()
    (before,) = answers(over_vllm, [asked(TEXTS[0], VECTORS[1])])
    client.delete(f"/steering/vectors/{VECTORS[1]}", cast_to=object)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked(TEXTS[0], VECTORS[1]))
    client.post("/steering/vectors", body={"name": VECTORS[1]}, cast_to=object)
    (after,) = answers(over_vllm, [asked(TEXTS[0], VECTORS[1])])
    assert after.choices == before.choices


def test_what_is_too_long_for_vllm_is_refused(over_vllm: Served):
    with pytest.raises(openai.BadRequestError, match="the model sees 512 tokens"):
        over_vllm.client().chat.completions.create(**asked("word " * 600, None))
