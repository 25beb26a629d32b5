"""Many requests at once, and many one after the other."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving import KEY, MODEL, VECTORS, Served, chat_ids, serving, text_of, truth, until
from serving import write_vectors as write

STRENGTHS = (-2.0, -0.5, 1.0, 2.5)
RECIPES: list[list[dict[str, Any]]] = [
    [],
    *([{"name": name, "strength": s}] for name in ("warm", "set/cold") for s in STRENGTHS),
    *([{"name": "set/cold", "layers": [layer]}] for layer in (0, 2)),
    *([{"name": "warm", "strength": s}, {"name": "set/cold", "strength": -s}] for s in STRENGTHS),
    [{"name": "set/cold"}, {"name": "warm"}],
]
TEXTS = [f"{'Tell me more. ' * (n % 4)}{n}" for n in range(3)]


def added(recipe: list[dict[str, Any]]) -> dict[int, Any]:
    """What a recipe adds, by layer."""
    sums: dict[int, Any] = {}
    for use in recipe:
        for layer, vector in VECTORS[use["name"]].items():
            if layer in use.get("layers", [layer]):
                sums[layer] = sums.get(layer, 0) + use.get("strength", 1.0) * vector
    return sums


def plan(number: int) -> list[tuple[str, int, int]]:
    """Text, number of the recipe and length of each request; many are asked more than once."""
    return [(TEXTS[n % 3], n % len(RECIPES), 4 + n % 4 * 5) for n in range(number)]


async def ask(client: openai.AsyncOpenAI, what: tuple[str, int, int], *, stream: bool) -> str:
    text, recipe, limit = what
    answer: Any = await client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": text}],
        max_tokens=limit,
        temperature=0,
        stream=stream,
        extra_body={"steering": {"vectors": RECIPES[recipe]}},
    )
    if not stream:
        return answer.choices[0].message.content
    return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])


async def disturb(served: Served, client: openai.AsyncOpenAI, seen: list[int], rounds: int) -> None:
    """What else goes on: vectors come and go, clients leave, nonsense and too much is asked."""
    headers = served.headers | {"Content-Type": "application/json"}
    strong = {"vectors": [{"name": "warm", "strength": 1e6}]}
    for number in range(rounds):
        await client.delete("/steering/vectors/late", cast_to=object)
        async with httpx.AsyncClient(base_url=served.url, headers=headers) as other:
            for text in ('{"model"', json.dumps({"model": MODEL, "steering": strong})):
                answer = await other.post("/v1/chat/completions", content=text)
                seen.append(answer.status_code)
            answer = await other.get("/v1/models", headers={"Authorization": "Bearer wrong"})
            seen.append(answer.status_code)
            body = {"model": MODEL, "prompt": "x", "max_tokens": 500, "stream": number % 2 == 0}
            with suppress(httpx.ReadTimeout):
                async with other.stream("POST", "/v1/completions", json=body, timeout=0.1) as left:
                    seen.append(left.status_code)
        await client.post("/steering/vectors", body={"name": "late"}, cast_to=object)


@pytest.mark.slow
@pytest.mark.parametrize("number", [40, 200])
def test_many_at_once_say_what_each_says_alone(tiny_folder: Path, tmp_path: Path, number: int):
    asked, rounds = plan(number), number // 10
    expected = {
        what: text_of(truth(chat_ids(what[0]), what[2], added(RECIPES[what[1]])))
        for what in dict.fromkeys(asked)
    }
    seen: list[int] = []

    async def everything(served: Served) -> list[str]:
        client = served.client(openai.AsyncOpenAI)
        async with client:
            requests = [ask(client, what, stream=n % 3 == 0) for n, what in enumerate(asked)]
            said, _ = await asyncio.gather(
                asyncio.gather(*requests), disturb(served, client, seen, rounds)
            )
        return said

    with serving(tiny_folder, tmp_path, batch_size="32") as served:
        said = asyncio.run(everything(served))
        until(lambda: served.number("steer_running_answers") == 0)
        assert served.number("steer_waiting_answers") == 0
    assert all(expected[what] == text for what, text in zip(asked, said, strict=True))
    assert [status for status in seen if status != 200] == [400, 400, 401] * rounds


@contextmanager
def started(folder: Path, model: Path) -> Iterator[tuple[Served, psutil.Process]]:
    """`python -m steer.serve --config FILE` in a process of its own."""
    values = {
        "model_name_or_path": str(model),
        "device": "cpu",
        "vector_dir": str(write(folder / "vectors")),
        "vectors": list(VECTORS),
        "batch_size": "16",
    }
    (folder / "mine.yaml").write_text(json.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", "steer.serve", "--config", str(folder / "mine.yaml")]
    environment = os.environ | {"STEER_API_KEYS": KEY}
    command.append("port=0")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = (line for line in process.stderr if "serving at http" in line)
        try:
            url = next(lines).split()[-1].removesuffix("/v1")
            yield Served(url, folder / "vectors", None), psutil.Process(process.pid)  # type: ignore[arg-type]
        finally:
            process.terminate()
            process.wait(60)


@pytest.mark.slow
def test_memory_is_steady_over_two_thousand_requests(tiny_folder: Path, tmp_path: Path):
    async def some(served: Served, number: int) -> None:
        client = served.client(openai.AsyncOpenAI)
        async with client:
            for start in range(0, number, 50):
                asked = plan(number)[start : start + 50]
                await asyncio.gather(*(ask(client, what, stream=False) for what in asked))

    with started(tmp_path, tiny_folder) as (served, process):
        asyncio.run(some(served, 500))
        before = process.memory_info().rss
        asyncio.run(some(served, 1500))
        grown = (process.memory_info().rss - before) / 2**20
        assert served.number("steer_running_answers") == 0
    assert grown < 16, f"{grown:.1f} MiB more"
