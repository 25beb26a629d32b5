"""Rows that take each other's places: each says what it says alone."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny import ids_of, kept
from torch import Tensor

from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    AddKeepingNorm,
    EditLayer,
    Intervention,
    ProjectOut,
    SteeredModel,
    TokenMask,
    generate_batches,
)
from steer.models.continuous import ContinuousDecoder, can_refill, unfollowed
from steer.models.ends import settled
from steer.models.next_token import Manner, Request
from steer.models.sampling import generation_config

# Short and long ones in turn, so that a longer prompt comes where all others are short.
PROMPTS = ids_of([4, 9, 2, 7, 30, 1, 5, 12, 3, 3, 17, 6])
LIMITS = [3, 12, 9, 1, 7, 15, 4, 8, 2, 40, 5, 11]
NEVER = {"do_sample": False, "eos_token_id": 9999}
VECTORS = 3 * torch.randn(len(PROMPTS), 16, generator=torch.Generator().manual_seed(1))


def manner(model: SteeredModel, **params: Any) -> Manner:
    config = generation_config(model.model.generation_config, NEVER | params)
    assert not unfollowed(config)
    return Manner.of(settled(config, model), model)


def requests_of(
    model: SteeredModel,
    steering: Sequence[Sequence[Intervention]] | None = None,
    manners: Sequence[Manner] | None = None,
) -> list[Request]:
    rows = range(len(PROMPTS))
    steering = steering or [[] for _ in rows]
    manners = manners or [manner(model)] * len(PROMPTS)
    return [
        Request(row, PROMPTS[row], LIMITS[row], manners[row], steering[row], (7, row))
        for row in rows
    ]


def drain(decoder: ContinuousDecoder, requests: Sequence[Request] = ()) -> dict[Any, list[int]]:
    """Answers by key, and the check that they are the tokens that came one by one."""
    for request in requests:
        decoder.add(request)
    said: dict[Any, list[int]] = {}
    answers: dict[Any, list[int]] = {}
    while decoder.busy:
        for new in decoder.step():
            said.setdefault(new.key, []).append(new.token)
            if new.answer is not None:
                answers[new.key] = new.answer
    assert said == answers
    return answers


def alone(model: SteeredModel, request: Request, **params: Any) -> list[int]:
    """What transformers' own loop makes of a request without steering."""
    ids = torch.tensor([request.prompt])
    limit = {"max_new_tokens": request.limit, "pad_token_id": 257}
    out = model.model.generate(input_ids=ids, **(NEVER | limit | params))
    return out[0, len(request.prompt) :].tolist()


KINDS = ["llama", "gpt2", "gemma3_text"]
SLOW = ["qwen2", "qwen3", "gemma2", "gpt_neox", "mistral", "phi", "opt", "mixtral"]


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_every_row_says_what_transformers_says(kind: str):
    model = kept(kind)
    assert can_refill(model)
    requests = requests_of(model)
    expected = {one.key: alone(model, one) for one in requests}
    assert drain(ContinuousDecoder(model, 4), requests) == expected


@pytest.mark.parametrize("rows", [1, 2, 5, 20])
def test_the_number_of_rows_and_the_order_have_no_say(model: SteeredModel, rows: int):
    requests = requests_of(model, [[EditLayer(1, Add(vector))] for vector in VECTORS])
    expected = drain(ContinuousDecoder(model, 3), requests)
    assert drain(ContinuousDecoder(model, rows), requests[::-1]) == expected


def by_hand(model: SteeredModel, row: int, hidden: Any) -> list[int]:
    """Greedy tokens of one row, by a loop without a cache; `hidden` edits block 1's output."""
    text = list(PROMPTS[row])
    hook = model.blocks[1].register_forward_hook(lambda _m, _a, out: hidden(out, len(PROMPTS[row])))
    with hook, torch.inference_mode():
        for _ in range(LIMITS[row]):
            text.append(int(model.model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(PROMPTS[row]) :]


def test_each_row_has_steering_of_its_own(model: SteeredModel):
    mask = torch.arange(40)[None] % 2 == 0
    steering = [
        [],
        [EditLayer(1, Add(VECTORS[1], -2.0))],
        [EditLayer(1, Add(VECTORS[2]), GENERATED)],
        [EditLayer(1, ProjectOut(VECTORS[3]))],
        [EditLayer(1, Add(VECTORS[4]), PROMPT), EditLayer(1, ProjectOut(VECTORS[4]))],
        [EditLayer(1, Add(VECTORS[5]), TokenMask(mask))],
        [EditLayer(1, AddKeepingNorm(VECTORS[6]), FROM_PROMPT_END)],
    ]

    def added(vector: Tensor, start: int | None = None, stop: int | None = None) -> Any:
        def edit(out: Tensor, length: int) -> Tensor:
            out = out.clone()
            first = 0 if start is None else length + start
            out[0, first : None if stop is None else length + stop] += vector
            return out

        return edit

    def projected(out: Tensor, row: int) -> Tensor:
        unit = VECTORS[row] / VECTORS[row].norm()
        return out - (out @ unit)[..., None] * unit

    def alternating(out: Tensor, _: int) -> Tensor:
        out = out.clone()
        out[0, 0:40:2] += VECTORS[5]
        return out

    def keeping(out: Tensor, length: int) -> Tensor:
        new = added(VECTORS[6], -1)(out, length)
        return new * (out.norm(dim=-1, keepdim=True) / new.norm(dim=-1, keepdim=True))

    truths = [
        lambda out, _: out,
        added(-2 * VECTORS[1]),
        added(VECTORS[2], 0),
        lambda out, _: projected(out, 3),
        lambda out, length: projected(added(VECTORS[4], None, 0)(out, length), 4),
        alternating,
        keeping,
    ]
    count = len(PROMPTS)
    requests = requests_of(model, [steering[row % 7] for row in range(count)])
    found = drain(ContinuousDecoder(model, 5), requests)
    for row in range(7):
        assert found[row] == by_hand(model, row, truths[row]), row
    plain = drain(ContinuousDecoder(model, 5), requests_of(model))
    assert sum(found[row] != plain[row] for row in range(7)) >= 4
    assert found[0] == plain[0]


def answers_of(batches: list[tuple[list[int], list[Any]]]) -> list[list[int]]:
    found = {row: a.new_ids for rows, some in batches for row, a in zip(rows, some, strict=True)}
    return [found[row] for row in range(len(found))]


@pytest.mark.parametrize(
    "more", [{}, {"stop_strings": ["a", "bc"]}, {"do_sample": True}, {"min_new_tokens": 4}], ids=str
)
def test_generate_batches_fills_up_what_is_free(model: SteeredModel, more: dict[str, Any]):
    edit = EditLayer(1, Add(VECTORS, torch.linspace(-1, 2, len(PROMPTS))), FROM_PROMPT_END)
    seeds = [(3, row) for row in range(len(PROMPTS))]

    def run(size: int, ends: list[int]) -> list[tuple[list[int], list[Any]]]:
        params = {"do_sample": False, "max_new_tokens": 9, "eos_token_id": ends} | more
        given: dict[str, Any] = {"interventions": [edit], "seeds": seeds, "batch_size": size}
        return list(generate_batches(model, PROMPTS, params, **given))

    long = answers_of(run(12, [9999]))
    ends = [long[1][2], long[4][1], long[7][5]]
    whole, filled = run(12, ends), run(4, ends)
    assert answers_of(filled) == answers_of(whole) != long
    assert (len(whole), len(filled) > 3) == (1, True)


def test_requests_differ_in_how_they_choose(model: SteeredModel):
    one = manner(model)
    ends = drain(ContinuousDecoder(model, 4), requests_of(model))
    settings: list[dict[str, Any]] = [
        {"repetition_penalty": 1.7},
        {"eos_token_id": ends[1][2]},
        {"eos_token_id": ends[2][2], "min_new_tokens": 6},
        {"do_sample": True, "temperature": 0.7},
        {"do_sample": True, "top_k": 5, "top_p": 0.9},
        {"do_sample": True, "top_k": 3, "repetition_penalty": 2.0},
    ]
    manners = [manner(model, **settings[row]) if row < 6 else one for row in range(len(PROMPTS))]
    requests = requests_of(model, manners=manners)
    found = drain(ContinuousDecoder(model, 5), requests)
    for row, params in enumerate(settings[:3]):
        assert found[row] == alone(model, requests[row], **params), row
    for row in range(3, 6):
        options = NEVER | settings[row] | {"max_new_tokens": LIMITS[row]}
        ((_, (answer,)),) = generate_batches(model, [PROMPTS[row]], options, seeds=[(7, row)])
        assert found[row] == answer.new_ids
        assert found[row] != ends[row]
    assert {row: found[row] for row in range(6, 12)} == {row: ends[row] for row in range(6, 12)}
