"""Runs of `generation.py` with compiled steps."""

from collections.abc import Callable, Sequence

import torch

from steer.engines.compiled import CompiledEngine, layout_for
from steer.engines.recipes import layout_of
from steer.models import Add, EditLayer, SteeredModel, generate_batches
from steer.models.tally import Tally

Recipe = list[EditLayer]
Runs = dict[str, Callable[[], object]]


def compiled(
    engine: CompiledEngine, prompts: Sequence[list[int]], recipe: Recipe, params: dict[str, object]
) -> dict[int, list[int]]:
    """Answers by row; what was to be steered was, or the engine says so."""
    tally: Tally = {}
    given = engine.batches(prompts, params, [recipe] * len(prompts), [(0,)] * len(prompts), tally)
    found = {row: a.new_ids for rows, some in given for row, a in zip(rows, some, strict=True)}
    assert set(tally) == {edit.layer for edit in recipe}
    return found


def of_compiled(model: SteeredModel, prompts: Sequence[list[int]], tokens: int, size: int) -> Runs:
    """Every answer of the same length."""
    dice = torch.Generator().manual_seed(0)
    # No vocabulary has that token: answers end by their length alone.
    params = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": 2**40}

    def recipe(*layers: int) -> Recipe:
        return [EditLayer(n, Add(torch.randn(model.d_model, generator=dice))) for n in layers]

    one, every = recipe(model.depth // 2), recipe(*range(model.depth))
    ready = CompiledEngine(model, layout_for([one], model.depth), batch_size=size)
    single = CompiledEngine(model, layout_of([one]), batch_size=size)
    bare = CompiledEngine(model, {}, batch_size=size)

    def dynamic(steps: Recipe) -> None:
        tally: Tally = {}
        options = {"interventions": steps, "batch_size": size, "tally": tally}
        for _ in generate_batches(model, prompts, params, **options):  # type: ignore[arg-type]
            pass

    return {
        "dynamic": lambda: dynamic(one),
        "bare": lambda: compiled(bare, prompts, [], params),
        "idle": lambda: compiled(ready, prompts, [], params),
        "single": lambda: compiled(single, prompts, one, params),
        "one": lambda: compiled(ready, prompts, one, params),
        "every": lambda: compiled(ready, prompts, every, params),
    }
