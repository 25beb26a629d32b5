"""What steering costs in vLLM.

    python benchmarks/vllm_engine.py
    python benchmarks/vllm_engine.py --eager

In one run, on vLLMs that are all there at once: (plain) vLLM as it comes; (idle) made ready to
steer every block, with nothing in force; (one) one block steered; (all) every block steered;
(mixed) 16 recipes in turn. Vectors are too small to change a token, so that all give the same
answers; counts prove that they were added.
"""

import torch
from _measure import interleaved, parser, ratio, report

from steer.datasets import DatasetLoader
from steer.engines.options import EngineOptions
from steer.engines.vllm import VLLMEngine
from steer.engines.vllm_sampling import sampling_of
from steer.models import Add, ChatFormat, EditLayer, SteeredModel
from steer.models.generation import settings_of
from steer.models.load import ModelSource
from steer.models.tally import Tally

Rows = list[list[int]]
# So small that no token changes, and not 0, which would be no steering.
TINY = 1e-30


def prompts_of(model: SteeredModel, number: int) -> Rows:
    """The shipped film prompts, again from the first where more are asked for."""
    chat = ChatFormat(use_chat_template=True)
    rows = DatasetLoader().load_file("sentiment", "generation")
    texts = [chat.text(model.tokenizer, str(row["input"])) for row in rows]
    return [chat.encode(model.tokenizer, texts[n % len(texts)]) for n in range(number)]


def recipe(model: SteeredModel, layers: list[int], number: int = 0) -> list[EditLayer]:
    """Vectors that change nothing, another one for each number."""
    generator = torch.Generator().manual_seed(number)
    return [
        EditLayer(layer, Add(TINY * torch.randn(model.d_model, generator=generator)))
        for layer in layers
    ]


def steered(
    engine: VLLMEngine, rows: Rows, params: dict[str, object], recipes: list[list[EditLayer]]
) -> tuple[list[list[int]], Tally]:
    """Answers of the engine, and its counts."""
    tally: Tally = {}
    found: dict[int, list[int]] = {}
    given = [recipes[n % len(recipes)] for n in range(len(rows))]
    for numbers, answers in engine.batches(rows, params, given, [(0,)] * len(rows), tally):
        found[numbers[0]] = answers[0].new_ids
    return [found[n] for n in range(len(rows))], tally


def plain(llm: object, rows: Rows, arguments: dict[str, object]) -> list[list[int]]:
    """Answers of vLLM by itself."""
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": row} for row in rows]
    out = llm.generate(requests, SamplingParams(**arguments), use_tqdm=False)  # type: ignore[attr-defined]
    return [list(one.outputs[0].token_ids) for one in out]


def main() -> None:
    """Measure, and print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--prompts", type=int, default=64)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--recipes", type=int, default=16)
    options.add_argument("--eager", action="store_true", help="neither compiled nor captured")
    given = options.parse_args()
    source = ModelSource(dtype="float32")
    model = source.load()
    rows, tokens = prompts_of(model, given.prompts), given.tokens
    params = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    every = list(range(model.depth))
    middle = [model.depth // 2]
    engine_options = EngineOptions(
        engine="vllm", vllm_enforce_eager=given.eager, vllm_max_model_len=1024
    )
    path = str(source.place()[0])

    def engine(layers: list[int]) -> VLLMEngine:
        layout = {layer: [("add",)] for layer in layers}
        return VLLMEngine(model, path, "float32", layout, engine_options)

    one, full = engine(middle), engine(every)
    from vllm import LLM

    bare = LLM(model=path, dtype="float32", **engine_options.engine_args())
    arguments = sampling_of(settings_of(model, rows, params)[0], tokens, (0,))
    mixed = [recipe(model, every, number) for number in range(given.recipes)]
    runs = {
        "plain": lambda: plain(bare, rows, arguments),
        "idle": lambda: steered(full, rows, params, [[]]),
        "one": lambda: steered(one, rows, params, [recipe(model, middle)]),
        "all": lambda: steered(full, rows, params, [recipe(model, every)]),
        "mixed": lambda: steered(full, rows, params, mixed),
    }
    expected = plain(bare, rows, arguments)
    for name in ("idle", "one", "all", "mixed"):
        answers, tally = runs[name]()  # type: ignore[misc]
        assert answers == expected, f"{name}: other answers than vLLM's own"
        counted = {place: counts.summary()["tokens"] for place, counts in tally.items()}
        layers = {"idle": [], "one": middle}.get(name, every)
        assert sorted(counted) == layers, f"{name}: {counted} were steered"
    times = interleaved(runs, given.repetitions, model.device)
    what = {"prompts": len(rows), "tokens": tokens, "recipes": given.recipes, "eager": given.eager}
    ratios = {
        f"plain/{name}": ratio(times["plain"], times[name]) for name in ("idle", "one", "all")
    }
    ratios["all/mixed"] = ratio(times["all"], times["mixed"])
    report(what, times, ratios, given.json)


if __name__ == "__main__":
    main()
