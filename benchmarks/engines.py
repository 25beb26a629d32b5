"""How far apart engines are that do the same recipes: the table of docs/engines.md.

    python benchmarks/engines.py hf                     first: makes the truth, too
    .venv-vllm/bin/python benchmarks/engines.py vllm    after make test-vllm
    python benchmarks/engines.py llama                  needs llama-cpp-python
    python benchmarks/engines.py table

The embedded model in float32. The truth is transformers, one row at a time, read whole, steered by
hooks; what is compared are log-probabilities of all tokens, at four steps of its greedy answers.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from _contract import GREEDY, STEPS, Engine, Truth, log_probs, prompts_of, recipes
from torch import Tensor

from steer.engines.options import EngineOptions
from steer.engines.recipes import Recipe, layout_of
from steer.likelihood import last_logits
from steer.models import SteeredModel
from steer.models.embedded import embedded_gguf
from steer.models.load import ModelSource

ADDING = ("add, one layer", "add, every layer")


def batched(model: SteeredModel) -> Engine:
    """transformers, the row in the middle of a padded batch."""

    def engine(prompt: list[int], answer: list[int], recipe: Recipe) -> Tensor:
        found = []
        others = prompts_of(model)
        for step in STEPS:
            rows = [others[0], prompt + answer[:step], others[2] + answer]
            lengths = torch.tensor([len(rows[0]), len(prompt), len(others[2])])
            lengths = lengths.to(model.device)
            with model.steering(recipe, prompt_lengths=lengths):
                logits = last_logits(model, rows, 1)
            found.append(logits[1, -1].float().log_softmax(-1).cpu())
        return torch.stack(found)

    return engine


def spread(source: ModelSource, folder: Path) -> SteeredModel:
    """The model over two devices: a GPU and the CPU, or the CPU and the disk."""
    near, far = ("cuda:0", "cpu") if torch.cuda.is_available() else ("cpu", "disk")
    half = source.structure().depth // 2
    blocks = {f"model.layers.{n}": near if n < half else far for n in range(2 * half)}
    places = {"model.embed_tokens": near, "model.rotary_emb": near, "model.norm": near}
    places |= {"lm_head": near, **blocks}
    more: dict[str, Any] = {"offload_folder": str(folder / "offload")} if far == "disk" else {}
    return ModelSource(dtype="float32", device_map=places, model_kwargs=more).load()


def compiled(model: SteeredModel) -> Engine:
    """Transformers with compiled steps, each step as it is decoded."""
    from steer.engines.compiled import CompiledEngine, layout_for
    from steer.models.compiled import CompiledModel, Frame

    kinds = list(recipes(model).values())
    made = CompiledEngine(model, layout_for(kinds, model.depth), batch_size=1)
    heard: list[Tensor] = []
    read, step = CompiledModel.read, Frame.step

    def hear_read(self: CompiledModel, *given: Any) -> Tensor:
        logits = read(self, *given)
        heard.append(logits[0].float().log_softmax(-1).cpu())
        return logits

    def hear_step(self: Frame) -> None:
        step(self)
        heard.append(self.logits[0].float().log_softmax(-1).cpu())

    CompiledModel.read, Frame.step = hear_read, hear_step  # type: ignore[method-assign]

    def engine(prompt: list[int], answer: list[int], recipe: Recipe) -> Tensor:
        heard.clear()
        ((_, (found,)),) = made.batches([prompt], GREEDY, [recipe], [(0,)])
        assert found.new_ids == answer, "another answer: later steps are not comparable"
        return torch.stack([heard[-len(answer) :][number] for number in STEPS])

    return engine


def vllm(model: SteeredModel, options: EngineOptions) -> tuple[Any, Engine]:
    """A vLLM of these options; and as an engine."""
    from steer.engines.vllm import VLLMEngine

    path = str(ModelSource().place()[0])
    kinds = list(recipes(model).values())
    options.vllm_params = {"max_logprobs": -1}
    made = VLLMEngine(model, path, "float32", layout_of(kinds), options)

    every = {"max_tokens": 1, "temperature": 0.0, "logprobs": -1}

    def engine(prompt: list[int], answer: list[int], recipe: Recipe) -> Tensor:
        rows = [prompt + answer[:step] for step in STEPS]
        starts = [len(prompt)] * len(rows)
        asked = made._run(rows, [every] * 4, [recipe] * 4, None, starts, whole=True)
        by_row = {row: output.outputs[0].logprobs[0] for row, output in asked}
        found = torch.empty(len(rows), len(by_row[0]))
        for row, given in by_row.items():
            for token, one in given.items():
                found[row, token] = one.logprob
        return found

    return made, engine


def compare_vllm(model: SteeredModel, truth: Truth) -> None:
    """Eager, compiled, and two workers that share each layer or the layers."""
    ways = {
        "vLLM, eager": EngineOptions(vllm_enforce_eager=True),
        "vLLM, compiled": EngineOptions(),
        "vLLM, two workers (pipeline)": EngineOptions(vllm_pipeline_parallel_size=2),
    }
    for label, options in ways.items():
        options.vllm_max_model_len = 256
        made, engine = vllm(model, options)
        truth.compare(model, label, engine)
        made.close()


def main() -> None:
    """Compare the engines that are named."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("what", choices=["hf", "compiled", "vllm", "llama", "table"])
    options.add_argument("--folder", type=Path, default=Path("outputs/engines"))
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    truth = Truth(given.folder)
    source = ModelSource(dtype="float32", device=given.device)
    if given.what == "hf":
        model = source.load()
        truth.make(model)
        truth.compare(model, "transformers, one row", lambda *one: log_probs(model, *one))
        truth.compare(model, "transformers, a padded batch", batched(model))
        apart = spread(source, given.folder)
        truth.compare(model, "transformers, two devices", lambda *one: log_probs(apart, *one))
    elif given.what == "compiled":
        model = source.load()
        truth.compare(model, "transformers, compiled", compiled(model))
    elif given.what == "vllm":
        compare_vllm(source.structure(), truth)
    elif given.what == "llama":
        from _llama import LlamaCpp, in_float32

        model, path = source.structure(), given.folder / "float32.gguf"
        in_float32(embedded_gguf(), path)
        truth.compare(model, "llama.cpp", LlamaCpp(path, model.depth, model.d_model), ADDING)
    else:
        print(truth.table())


if __name__ == "__main__":
    main()
