"""Answers to the same prompts under many steerings, which are rows of shared batches."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

from steer.models import Answer, Intervention, SteeredModel, generate_batches
from steer.models.continuous import ContinuousDecoder
from steer.models.generation import answer_of_ids, settings_of
from steer.models.request import can_refill, request_of, unfollowed
from steer.models.row_steering import join_rows

# Rows under way. Weights are read once a step for all of them: more rows than a user's own batch
# usually has cost little more on a CPU, and next to nothing on a GPU.
ROWS = {"cuda": 256, "cpu": 64}

Place = tuple[int, int]


def swept_answers(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sequence[Intervention]],
    params: dict[str, Any],
    rows: int | None = None,
) -> Iterator[tuple[Place, Answer]]:
    """Yield `((setting, prompt), answer)` for every setting and prompt, as they are finished.

    Args:
        model: What is in force on it does not act.
        prompts: Token ids, at least one each.
        settings: Interventions, given for one row; none is the unsteered model.
        params: For `transformers`' `generate`.
        rows: Most answers under way; what suits the device where None. Halved, with a warning,
            when memory runs out.
    """
    config, _ = settings_of(model, prompts, params)
    places = [(s, p) for s in range(len(settings)) for p in range(len(prompts))]
    if not can_refill(model) or unfollowed(config):
        yield from _in_fixed_batches(model, prompts, settings, params, places)
        return
    decoder = ContinuousDecoder(model, rows or ROWS.get(model.device.type, ROWS["cpu"]))
    for place in places:
        setting, prompt = settings[place[0]], list(prompts[place[1]])
        decoder.add(
            request_of(model, place, prompt, params, interventions=setting, seed=(place[1],))
        )
    while decoder.busy:
        for new in decoder.step():
            if new.answer is not None:
                place = cast(Place, new.key)
                yield place, answer_of_ids(model, list(prompts[place[1]]), new.answer)


def _in_fixed_batches(
    model: SteeredModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sequence[Intervention]],
    params: dict[str, Any],
    places: Sequence[Place],
) -> Iterator[tuple[Place, Answer]]:
    """The same by `transformers`' own `generate`, for what rows that come and go cannot follow."""
    steps = join_rows([settings[s] for s, _ in places])
    ids, seeds = [prompts[p] for _, p in places], [(p,) for _, p in places]
    for rows, answers in generate_batches(model, ids, params, interventions=steps, seeds=seeds):
        yield from zip([places[row] for row in rows], answers, strict=True)
