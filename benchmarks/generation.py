"""How fast steered answers are generated.

    python benchmarks/generation.py
    python benchmarks/generation.py --shape llama3-8b --prompts 64 --tokens 64 --batch-size 64

In one run: (loop) a prompt at a time, as EasyEdit2 does; (steer) this library with its basic
report; (floor) transformers' `generate`, unsteered, on the same batches.

    python benchmarks/generation.py --prompts 256 --lengths 8 256 --kept rounds.jsonl

Answers forced to lengths drawn from that range: (fixed) batches sorted by prompt length, which
wait for their longest answer; (steer) a finished row's place is taken by the next prompt. A round
takes long on a CPU: with `--kept`, the same command goes on from the rounds in the file, later or
in several processes at once, and counts every one of them.

    python benchmarks/generation.py --prompts 64 --batch-size 64 --recipes 16

So many recipes, two layers each, given to the rows in turn: (mixed) all in one batch; (one) the
first for every row; (plain) none.

    python benchmarks/generation.py --shape llama3-8b --prompts 64 --tokens 64 --compile

Compiled steps against (dynamic), this library's steps with a growing cache, one block steered:
(bare) without anything that could steer; (idle) ready to steer every block, with nothing in force;
(one) so, and one block steered; (every) all of them; (single) ready to steer one block alone.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from _compiled import of_compiled
from _measure import interleaved, kept_rounds, load, made_up_pairs, parser, ratio, report
from _refilling import drawn, fixed, recipes, refilled
from torch import nn

from steer.datasets import DatasetLoader
from steer.models import Add, ChatFormat, EditLayer, SteeredModel, generate_batches
from steer.models.batching import padded, run_batches
from steer.models.tally import Tally


def loop(model: SteeredModel, prompts: list[list[int]], step: EditLayer, tokens: int) -> None:
    """One prompt a call, the vector added by a hook."""

    def add(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output + vector

    vector = (step.edit.strength * step.edit.vector).to(model.device, model.model.dtype)
    with torch.inference_mode(), model.blocks[step.layer].register_forward_hook(add):
        for prompt in prompts:
            ids = torch.tensor([prompt], device=model.device)
            _generate(model, ids, torch.ones_like(ids), tokens)


def steered(
    model: SteeredModel, prompts: list[list[int]], step: EditLayer, tokens: int, size: int
) -> Tally:
    """All prompts in batches, with counts and dose."""
    tally: Tally = {}
    params = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    for _ in generate_batches(
        model, prompts, params, interventions=[step], batch_size=size, tally=tally
    ):
        pass
    return {layer: counts.summary() for layer, counts in tally.items()}  # type: ignore[misc]


def floor(model: SteeredModel, prompts: list[list[int]], tokens: int, size: int) -> None:
    """The same batches, unsteered."""

    def run(rows: list[int]) -> None:
        ids, mask = padded([prompts[row] for row in rows], 0, "left", model.device)
        out = _generate(model, ids, mask, tokens)
        for row in out.tolist():
            model.tokenizer.decode(row)

    with torch.inference_mode():
        for _ in run_batches([len(prompt) for prompt in prompts], size, run):
            pass


def _generate(
    model: SteeredModel, ids: torch.Tensor, mask: torch.Tensor, tokens: int
) -> torch.Tensor:
    return model.model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=model.tokenizer.pad_token_id,
    )


Runs = dict[str, Callable[[], object]]


def batched(model: SteeredModel, prompts: list[list[int]], tokens: int, size: int) -> Runs:
    """Every answer of the same length, one steering."""
    vector = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    step = EditLayer(model.depth // 2, Add(vector))
    return {
        "loop": lambda: loop(model, prompts, step, tokens),
        "steer": lambda: steered(model, prompts, step, tokens, size),
        "floor": lambda: floor(model, prompts, tokens, size),
    }


def of_lengths(
    model: SteeredModel, prompts: list[list[int]], lengths: list[int], size: int
) -> Runs:
    """Every answer of a length of its own, one steering."""
    step = recipes(model, 1)[0]
    return {
        "fixed": lambda: fixed(model, prompts, lengths, step, size),
        "steer": lambda: refilled(model, prompts, lengths, [step], size),
    }


def of_recipes(
    model: SteeredModel, prompts: list[list[int]], tokens: int, size: int, number: int
) -> Runs:
    """Every answer of the same length, `number` steerings."""
    every, lengths = recipes(model, number), [tokens] * len(prompts)
    return {
        "one": lambda: refilled(model, prompts, lengths, every[:1], size),
        "mixed": lambda: refilled(model, prompts, lengths, every, size),
        "plain": lambda: refilled(model, prompts, lengths, [[]], size),
    }


RATIOS = [
    ("loop", "steer"),
    ("steer", "floor"),
    ("fixed", "steer"),
    ("one", "mixed"),
    ("plain", "mixed"),
    ("dynamic", "one"),
    ("dynamic", "bare"),
    *((name, "bare") for name in ("idle", "single", "one", "every")),
]


def prompts_of(model: SteeredModel, shape: str, number: int) -> list[list[int]]:
    """The shipped ones for the embedded model, again from the first; else random tokens."""
    if shape != "embedded":
        return [list(p.ids) for p in made_up_pairs(model, number)[0]]
    rows = DatasetLoader().load_file("sentiment", "generation")
    chat = ChatFormat(use_chat_template=True)
    texts = [chat.text(model.tokenizer, row["input"]) for row in rows]
    return [chat.encode(model.tokenizer, texts[n % len(texts)]) for n in range(number)]


def main() -> None:
    """Measure, and print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--lengths", type=int, nargs=2, metavar=("LOWEST", "HIGHEST"))
    options.add_argument("--recipes", type=int)
    options.add_argument("--compile", action="store_true")
    options.add_argument(
        "--kept", type=Path, help="rounds are kept there; the same command goes on from them"
    )
    given = options.parse_args()
    number, tokens, repetitions = given.prompts, given.tokens, given.repetitions
    if given.quick:
        number, tokens, repetitions = 4, 8, 3
    model = load(given.shape, given.device)
    model.model.requires_grad_(False)
    prompts, size = prompts_of(model, given.shape, number), given.batch_size
    if given.compile:
        size = number  # one batch: what a step costs is measured, not who waits for whom
        runs = of_compiled(model, prompts, tokens, size)
    elif given.lengths:
        runs = of_lengths(model, prompts, drawn(number, *given.lengths), size)
    elif given.recipes:
        runs = of_recipes(model, prompts, tokens, size, given.recipes)
    else:
        runs = batched(model, prompts, tokens, size)
    what = {"shape": given.shape, "prompts": number, "batch_size": size}
    what |= {"lengths": given.lengths} if given.lengths else {"tokens": tokens}
    what |= {"recipes": given.recipes} if given.recipes else {}
    if given.kept:
        times = kept_rounds(runs, repetitions, model.device, given.kept, what)
    else:
        times = interleaved(runs, repetitions, model.device)
    ratios = {
        f"{over}/{under}": ratio(times[over], times[under])
        for over, under in RATIOS
        if over in times and under in times
    }
    report(what, times, ratios, given.json)


if __name__ == "__main__":
    main()
