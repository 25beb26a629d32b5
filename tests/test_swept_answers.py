"""Answers under many steerings at once, against one call of `generate_batches` for each."""

import pytest
import torch
from conftest import slow_but
from tiny import ids_of, steered, tiny_config

from steer.models import GENERATED, Add, EditLayer, ProjectOut, SteeredModel, generate_batches
from steer.search.answers import swept_answers

VECTOR = 3 * torch.randn(16, generator=torch.Generator().manual_seed(1))
PROMPTS = ids_of([5, 9, 2, 7])
SETTINGS = [
    [],
    [EditLayer(0, Add(VECTOR))],
    [EditLayer(1, Add(VECTOR, -2.0)), EditLayer(2, ProjectOut(VECTOR))],
    [EditLayer(1, Add(VECTOR, 0.0))],
    [EditLayer(2, Add(VECTOR, 4.0), GENERATED)],
]
GREEDY = {"max_new_tokens": 6, "do_sample": False}


def alone(model: SteeredModel, setting, params):
    found = {}
    for rows, answers in generate_batches(model, PROMPTS, params, interventions=setting):
        found.update(zip(rows, [a.new_ids for a in answers], strict=True))
    return [found[row] for row in range(len(PROMPTS))]


def swept(model: SteeredModel, params, rows: int | None = None):
    found = dict(swept_answers(model, PROMPTS, SETTINGS, params, rows))
    assert all(answer.prompt_ids == PROMPTS[p] for (_, p), answer in found.items())
    counts = range(len(SETTINGS)), range(len(PROMPTS))
    return [[found[s, p].new_ids for p in counts[1]] for s in counts[0]]


@pytest.mark.parametrize("rows", slow_but([3], [None, 3]))
def test_each_setting_answers_as_alone(every: SteeredModel, rows: int | None):
    answers = swept(every, GREEDY, rows)
    assert answers == [alone(every, setting, GREEDY) for setting in SETTINGS]
    assert answers[1] != answers[0]
    assert answers[3] == answers[0]


def test_sampling_is_seeded_by_the_prompt(model: SteeredModel):
    params = {"max_new_tokens": 6, "do_sample": True, "temperature": 2.0}
    answers = swept(model, params)
    assert answers == [alone(model, setting, params) for setting in SETTINGS]
    assert answers[3] == answers[0] != swept(model, GREEDY)[0]


def test_what_rows_that_come_and_go_cannot_follow_is_answered_in_fixed_batches():
    model = steered(tiny_config("llama"))
    params = {**GREEDY, "num_beams": 2}
    assert swept(model, params) == [alone(model, setting, params) for setting in SETTINGS]
