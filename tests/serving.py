"""A server on loopback, and what it must answer: a plain loop with a plain hook."""

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import torch
import uvicorn
from tiny import blocks_by_name, kept
from torch import Tensor

from steer.serve.run import server_of
from steer.serve.settings import ServeSettings

KEY = "a key of twenty chars"
MODEL = "tiny-llama"
RAW = torch.Generator().manual_seed(5)
VECTORS: dict[str, dict[int, Tensor]] = {
    name: {layer: 2 * torch.randn(16, generator=RAW) for layer in layers}
    for name, layers in {"warm": [1], "set/cold": [0, 2], "late": [2]}.items()
}


def write_vectors(folder: Path, vectors: Mapping[str, Mapping[int, Tensor]] = VECTORS) -> Path:
    for name, of_layers in vectors.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for layer, vector in of_layers.items():
            torch.save(vector, folder / name / f"layer_{layer}.pt")
    return folder


@dataclass
class Served:
    """A server that runs.

    Attributes:
        url: Its root.
        vectors: Its folder of vectors.
        server: The server itself, for what no client could do.
    """

    url: str
    vectors: Path
    server: uvicorn.Server
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})

    def client(self, kind: Any = openai.OpenAI, **options: Any) -> Any:
        options = {"max_retries": 0, "timeout": 120} | options
        return kind(base_url=f"{self.url}/v1", api_key=KEY, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        given = {"headers": self.headers, "timeout": 60} | options
        return httpx.post(self.url + path, **({"json": body} if body is not None else {}), **given)

    def number(self, name: str) -> float:
        """A figure of /metrics."""
        text = httpx.get(f"{self.url}/metrics", headers=self.headers).text
        found = [line for line in text.splitlines() if line.startswith(name + " ")]
        return float(found[0].split()[-1])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it does not come to hold"
        time.sleep(0.01)


@contextmanager
def serving(model: Path, folder: Path, **more: Any) -> Iterator[Served]:
    """A server of `model`, whose files are in `folder`."""
    (folder / "keys").write_text(f"another key, unused\n{KEY}\n", encoding="utf-8")
    vectors = write_vectors(folder / "vectors")
    values = {
        "model_name_or_path": str(model),
        "device": "cpu",
        "dtype": "float32",
        "vector_dir": str(vectors),
        "vectors": list(VECTORS),
        "api_key_file": str(folder / "keys"),
        "port": 0,
    }
    server = server_of(ServeSettings.of(values | more))
    thread = Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(f"http://127.0.0.1:{port}", vectors, server)
    finally:
        server.should_exit = True
        thread.join()


def chat_ids(text: str) -> list[int]:
    """What the tiny model's template makes of one turn of a user's."""
    return ids_of_text(f"<user>{text}\n<assistant>")


def ids_of_text(text: str) -> list[int]:
    return kept("llama").tokenizer(text)["input_ids"]


def truth(prompt: list[int], limit: int, added: Mapping[int, Tensor] | None = None) -> list[int]:
    """Greedy tokens of the tiny model by transformers' own loop, under plain hooks."""
    tiny = kept("llama")
    blocks = blocks_by_name(tiny.model)
    with ExitStack() as stack:
        for layer, vector in (added or {}).items():
            stack.enter_context(
                blocks[layer].register_forward_hook(lambda _m, _a, out, v=vector: out + v)
            )
        ids = torch.tensor([prompt])
        out = tiny.model.generate(
            input_ids=ids, max_new_tokens=limit, do_sample=False, eos_token_id=256, pad_token_id=257
        )
    return out[0, len(prompt) :].tolist()


def text_of(ids: list[int]) -> str:
    return kept("llama").tokenizer.decode(ids, skip_special_tokens=True)
