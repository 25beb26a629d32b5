"""What serving costs: requests through HTTP against the decoder that answers them.

    python benchmarks/serving.py
    python benchmarks/serving.py --shape llama3-8b --prompts 256 --rows 64 --tokens 64

In one run, all requests at once and greedy: (bare) given to the decoder directly, each of 16
recipes in turn; (server) the same through the server; (stream) streamed, a token an event; (one)
through the server with one recipe; (plain) with none. Server, client and model share the process.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import openai
import torch
import uvicorn
from _measure import interleaved, load, made_up_pairs, parser, ratio, report

from steer.datasets import DatasetLoader
from steer.models import Add, ChatFormat, EditLayer, SteeredModel
from steer.models.continuous import ContinuousDecoder
from steer.models.facts import model_facts
from steer.models.request import request_of
from steer.serve.run import server_of
from steer.serve.settings import ServeSettings

KEY = "a key for this machine alone"


def prompts_of(model: SteeredModel, shape: str, number: int) -> list[str]:
    """The shipped ones for the embedded model, again from the first; else random tokens."""
    if shape != "embedded":
        return [model.tokenizer.decode(list(p.ids)) for p in made_up_pairs(model, number)[0]]
    rows = DatasetLoader().load_file("sentiment", "generation")
    chat = ChatFormat(use_chat_template=True)
    texts = [chat.text(model.tokenizer, row["input"]) for row in rows]
    return [texts[n % len(texts)] for n in range(number)]


def vectors_of(model: SteeredModel, number: int) -> dict[str, dict[int, torch.Tensor]]:
    """Random vectors, each at two layers (seed 0)."""
    dice = torch.Generator().manual_seed(0)
    layers = (model.depth // 3, model.depth // 2)
    return {
        f"v{n}": {layer: torch.randn(model.d_model, generator=dice) for layer in layers}
        for n in range(number)
    }


def started(
    model: SteeredModel, vectors: dict[str, dict[int, torch.Tensor]], rows: int, folder: Path
) -> tuple[uvicorn.Server, Thread, str]:
    """A server of `model`, its thread and its URL."""
    (folder / "keys").write_text(KEY, encoding="utf-8")
    for name, of_layers in vectors.items():
        (folder / name).mkdir()
        for layer, vector in of_layers.items():
            torch.save(vector, folder / name / f"layer_{layer}.pt")
    settings = ServeSettings(
        vector_dir=str(folder),
        vectors=list(vectors),
        batch_size=str(rows),
        api_key_file=str(folder / "keys"),
        port=0,
        max_waiting=100_000,
    )
    server = server_of(settings, model)
    thread = Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return server, thread, f"http://127.0.0.1:{port}/v1"


def bare(
    model: SteeredModel, prompts: list[str], steering: list[list[EditLayer]], tokens: int, rows: int
) -> list[str]:
    """Answers of the decoder, which counts as the server has it count."""
    decoder = ContinuousDecoder(model, rows, fixed=True, apart=True)
    params = {"max_new_tokens": tokens, "do_sample": False}
    for number, prompt in enumerate(prompts):
        ids = ChatFormat().encode(model.tokenizer, prompt)
        own = steering[number % len(steering)]
        decoder.add(request_of(model, number, ids, params, interventions=own))
    answers: dict[Any, str] = {}
    while decoder.busy:
        for new in decoder.step():
            if new.answer is not None:
                for counts in new.tally.values():
                    counts.summary()
                answers[new.key] = model.tokenizer.decode(new.answer, skip_special_tokens=True)  # type: ignore[assignment]
    return [answers[number] for number in range(len(prompts))]


def asked(
    url: str, name: str, prompts: list[str], recipes: list[str | None], tokens: int, *, stream: bool
) -> list[str]:
    """Answers of the server to all prompts at once."""

    async def one(client: openai.AsyncOpenAI, number: int) -> str:
        answer: Any = await client.completions.create(
            model=name,
            prompt=prompts[number],
            max_tokens=tokens,
            temperature=0,
            stream=stream,
            extra_body={"steering": recipes[number % len(recipes)]},
        )
        if not stream:
            return answer.choices[0].text
        return "".join([chunk.choices[0].text async for chunk in answer])

    async def every() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY) as client:
            return await asyncio.gather(*(one(client, n) for n in range(len(prompts))))

    return asyncio.run(every())


def main() -> None:
    """Measure, and print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--rows", type=int, default=32)
    options.add_argument("--recipes", type=int, default=16)
    given = options.parse_args()
    number, tokens, repetitions = given.prompts, given.tokens, given.repetitions
    if given.quick:
        number, tokens, repetitions = 8, 8, 3
    model = load(given.shape, given.device)
    model.model.requires_grad_(False)
    prompts, vectors = prompts_of(model, given.shape, number), vectors_of(model, given.recipes)
    steering = [
        [EditLayer(layer, Add(vector.to(model.device))) for layer, vector in of_layers.items()]
        for of_layers in vectors.values()
    ]
    names: list[str | None] = [*vectors]
    with tempfile.TemporaryDirectory() as folder:
        server, thread, url = started(model, vectors, given.rows, Path(folder))

        def through(recipes: list[str | None], *, stream: bool = False) -> Callable[[], list[str]]:
            name = model_facts(model)["id"]
            return lambda: asked(url, name, prompts, recipes, tokens, stream=stream)

        runs = {
            "bare": lambda: bare(model, prompts, steering, tokens, given.rows),
            "server": through(names),
            "stream": through(names, stream=True),
            "one": through(names[:1]),
            "plain": through([None]),
        }
        expected = runs["bare"]()
        for run in ("server", "stream"):
            alike = sum(a == b for a, b in zip(runs[run](), expected, strict=True))
            # Rows of other batches may round another way.
            assert alike >= 0.9 * number, f"{run}: {alike} of {number} answers are the decoder's"
        times = interleaved(runs, repetitions, model.device)
        server.should_exit = True
        thread.join()
    what = {"shape": given.shape, "prompts": number, "tokens": tokens, "rows": given.rows}
    pairs = [("bare", "server"), ("bare", "stream"), ("one", "server"), ("plain", "server")]
    ratios = {f"{a}/{b}": ratio(times[a], times[b]) for a, b in pairs}
    report(what | {"recipes": given.recipes}, times, ratios, given.json)


if __name__ == "__main__":
    main()
