"""Rows that take each other's places: each says what it says alone."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import slow_but
from tiny import (
    adding,
    byte_tokenizer,
    full_logits,
    hooks_on,
    ids_of,
    kept,
    steered,
    tiny_config,
)
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from steer.engines.compiled import check_followed
from steer.engines.vllm_sampling import check_known
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
from steer.models.column_cache import FEWEST_SPARE
from steer.models.continuous import ContinuousDecoder
from steer.models.generation import settings_of
from steer.models.next_token import NextTokens
from steer.models.request import Manner, Request, can_refill, request_of
from steer.models.tally import Tally

# Short and long ones in turn, so that a longer prompt comes where all others are short.
PROMPTS = ids_of([4, 9, 2, 7, 30, 1, 5, 12, 3, 3, 17, 6])
LIMITS = [3, 12, 9, 1, 7, 15, 4, 8, 2, 40, 5, 11]
NEVER = {"do_sample": False, "eos_token_id": 9999}
VECTORS = 3 * torch.randn(len(PROMPTS), 16, generator=torch.Generator().manual_seed(1))


def manner(model: SteeredModel, **params: Any) -> Manner:
    return request_of(model, None, [1], NEVER | params).manner


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


KINDS = ["llama", "gemma3_text"]
SLOW = ["gpt2", "qwen2", "qwen3", "gemma2", "gpt_neox", "mistral", "phi", "opt", "mixtral"]


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
)
def test_every_row_says_what_transformers_says(kind: str):
    model = kept(kind)
    assert can_refill(model)
    requests = requests_of(model)
    expected = {one.key: alone(model, one) for one in requests}
    assert drain(ContinuousDecoder(model, 4), requests) == expected


@pytest.mark.parametrize("rows", slow_but([2], [1, 2, 5, 20]))
def test_the_number_of_rows_and_the_order_have_no_say(model: SteeredModel, rows: int):
    requests = requests_of(model, [[EditLayer(1, Add(vector))] for vector in VECTORS])
    expected = drain(ContinuousDecoder(model, 3), requests)
    assert drain(ContinuousDecoder(model, rows), requests[::-1]) == expected


def test_a_row_that_overflows_leaves_nothing_to_the_next_in_its_place(model: SteeredModel):
    # In float32 that is infinity, and no number in keys and values of the blocks behind it.
    huge = torch.full((16,), 3e38)
    far = EditLayer(0, Add(huge, 10.0))
    edits = {0: adding(10 * huge, range(9))}
    assert full_logits(model, PROMPTS[1], edits).isnan().all()
    count = len(PROMPTS)
    for rows, wide in ((2, range(1, count, 2)), (3, range(0, count, 2)), (4, [4, 7])):
        requests = requests_of(model, [[far] if row in wide else [] for row in range(count)])
        found = drain(ContinuousDecoder(model, rows), requests)
        plain = [one for one in requests if not one.interventions]
        assert {one.key: found[one.key] for one in plain} == {
            one.key: alone(model, one) for one in plain
        }


def by_hand(model: SteeredModel, row: int, hidden: Any) -> list[int]:
    """Greedy tokens of one row, by a loop without a cache; `hidden` edits block 1's output."""
    text = list(PROMPTS[row])
    hook = model.blocks[1].register_forward_hook(lambda _m, _a, out: hidden(out, len(PROMPTS[row])))
    with hook, torch.inference_mode():
        for _ in range(LIMITS[row]):
            text.append(int(model.model(torch.tensor([text])).logits[0, -1].argmax()))
    return text[len(PROMPTS[row]) :]


@pytest.mark.slow
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


MORE: list[dict[str, Any]] = [
    {"do_sample": True},
    {"stop_strings": ["a", "bc"]},
    {"min_new_tokens": 4},
    {},
]


@pytest.mark.slow
@pytest.mark.parametrize("more", slow_but(MORE[:1], MORE), ids=str)
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


@pytest.mark.slow
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


# ---- counts and memory ----


class Small(ContinuousDecoder):
    """Has memory for `room` rows; what is too much fails behind the pass."""

    room = 3

    def _logits(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        logits = super()._logits(ids, mask, cache)
        if len(ids) > self.room:
            raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")
        return logits


SAMPLED = {"do_sample": True, "top_k": 0}


@pytest.mark.slow
@pytest.mark.parametrize(
    "where", slow_but([FROM_PROMPT_END], [FROM_PROMPT_END, PROMPT, GENERATED]), ids=str
)
def test_no_token_is_counted_twice_and_none_is_left_out(model: SteeredModel, where: Any):
    steering = [[EditLayer(1, Add(vector), where)] for vector in VECTORS]
    steering[3] = []
    requests = requests_of(model, steering, [manner(model, **SAMPLED)] * len(PROMPTS))
    whole: Tally = {}
    expected = drain(ContinuousDecoder(model, 4, tally=whole), requests)
    rows = [row for row in range(len(PROMPTS)) if row != 3]
    # The last token of an answer is never read.
    read = {
        FROM_PROMPT_END: sum(LIMITS[row] for row in rows),
        PROMPT: sum(len(PROMPTS[row]) for row in rows),
        GENERATED: sum(LIMITS[row] - 1 for row in rows),
    }
    assert whole[1].summary()["tokens"] == read[where]
    short: Tally = {}
    assert drain(Small(model, 12, tally=short), requests) == expected
    said, once = short[1].summary(), whole[1].summary()
    assert said["tokens"] == once["tokens"]
    assert said["dose"] == pytest.approx(once["dose"], rel=1e-4)


def test_rows_are_halved_when_memory_runs_out_while_answers_are_under_way(
    model: SteeredModel, caplog: pytest.LogCaptureFixture
):
    requests = requests_of(model, manners=[manner(model, **SAMPLED)] * len(PROMPTS))
    expected = drain(ContinuousDecoder(model, 12), requests)
    decoder = Small(model, 12)
    decoder.room = 12
    for request in requests:
        decoder.add(request)
    said = [new for _ in range(4) for new in decoder.step()]
    decoder.room = 2
    while decoder.busy:
        said += decoder.step()
    assert decoder.rows == 2
    assert all("out of memory" in message for message in caplog.messages)
    by_key = {key: [new.token for new in said if new.key == key] for key in expected}
    assert by_key == expected


def test_memory_that_is_not_enough_is_an_error_where_nothing_can_be_halved(model: SteeredModel):
    for decoder, room in ((Small(model, 6, fixed=True), 3), (Small(model, 6), 0)):
        decoder.room = room
        with pytest.raises(torch.OutOfMemoryError):
            drain(decoder, requests_of(model))
        assert hooks_on(model.model) == []


@pytest.mark.parametrize("under_way", [False, True])
def test_a_pass_that_failed_behind_its_cache_leaves_nothing_to_later_requests(
    model: SteeredModel, monkeypatch: pytest.MonkeyPatch, under_way: bool
):
    requests = requests_of(model)
    decoder, choose, failed = ContinuousDecoder(model, 4, fixed=True), NextTokens.__call__, []

    def fails_once(self: NextTokens, scores: Tensor) -> Tensor:
        new = not self.rows[0].said
        if new and not failed and bool(decoder.running) == under_way:
            failed.extend(self.rows)
            raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")
        return choose(self, scores)

    monkeypatch.setattr(NextTokens, "__call__", fails_once)
    with pytest.raises(torch.OutOfMemoryError):
        drain(decoder, requests)
    assert failed
    for request in requests:
        decoder.cancel(request.key)
    assert decoder.step() == []
    assert not decoder.busy
    assert drain(decoder, requests) == {one.key: alone(model, one) for one in requests}


# ---- as a server uses it ----


def test_requests_are_cancelled_while_they_wait_and_while_they_run(model: SteeredModel):
    requests = requests_of(model)
    expected = drain(ContinuousDecoder(model, 3), requests)
    decoder = ContinuousDecoder(model, 3)
    for request in requests:
        decoder.add(request)
    for _ in range(3):
        decoder.step()
    running = {row.request.key for row in decoder.running}
    gone = {min(running), decoder.waiting[2].request.key, "never there"}
    for key in gone:
        decoder.cancel(key)
    answers: dict[Any, list[int]] = {}
    while decoder.busy:
        answers |= {new.key: new.answer for new in decoder.step() if new.answer is not None}
    assert not gone & answers.keys()
    assert answers.keys() >= expected.keys() - gone - {0, 3}
    assert all(answer == expected[key] for key, answer in answers.items())


@pytest.mark.parametrize("room", slow_but([2], [12, 2]))
def test_each_request_has_counts_of_its_own(model: SteeredModel, room: int):
    steering = [
        [EditLayer(n % 2, Add(vector)), EditLayer(2, Add(vector, 0.5), GENERATED)] if n % 3 else []
        for n, vector in enumerate(VECTORS)
    ]
    decoder, said = Small(model, 4, apart=True), {}
    decoder.room = 4
    for request in requests_of(model, steering):
        decoder.add(request)
    while decoder.busy:
        said |= {new.key: new for new in decoder.step() if new.answer is not None}
        decoder.room = room
    for row, new in said.items():
        read = len(PROMPTS[row]) + len(new.answer) - 1
        # In the rows whose turn it is nothing is steered; an answer's last token is never read.
        tokens = {row % 2: read, 2: len(new.answer) - 1} if row % 3 else {}
        assert {place: counts.summary()["tokens"] for place, counts in new.tally.items()} == tokens
        alone: Tally = {}
        (request,) = [one for one in requests_of(model, steering) if one.key == row]
        drain(ContinuousDecoder(model, 1, tally=alone), [request])
        for place, counts in new.tally.items():
            assert counts.summary()["dose"] == pytest.approx(alone[place].summary()["dose"])


@pytest.mark.slow
def test_requests_that_come_while_it_runs_from_another_thread(model: SteeredModel):
    requests = requests_of(model, [[EditLayer(1, Add(vector))] for vector in VECTORS])
    expected = drain(ContinuousDecoder(model, 4), requests)
    decoder, answers = ContinuousDecoder(model, 4), {}

    def feed() -> None:
        for request in requests:
            decoder.add(request)
            time.sleep(0.002)

    thread = threading.Thread(target=feed)
    thread.start()
    while thread.is_alive() or decoder.busy:
        answers |= {new.key: new.answer for new in decoder.step() if new.answer is not None}
    assert answers == expected


@pytest.mark.slow
def test_nothing_is_kept_of_requests_that_are_over(model: SteeredModel):
    decoder = ContinuousDecoder(model, 3)
    for _ in range(3):
        drain(decoder, requests_of(model, [[EditLayer(1, Add(v))] for v in VECTORS]))
        assert not decoder.waiting
        assert not decoder.running
        assert all(layer.keys is None for layer in decoder._cache.own)
        assert hooks_on(model.model) == []


@pytest.mark.slow
def test_the_cache_does_not_grow_with_what_has_been_said(model: SteeredModel):
    decoder, columns = ContinuousDecoder(model, 2), set()
    for number in range(40):
        decoder.add(Request(number, [5, 6, 7], 10 + number % 2, manner(model)))
    while decoder.busy:
        decoder.step()
        columns |= {layer.keys.shape[2] for layer in decoder._cache.own if layer.keys is not None}
    # 13 tokens at most, and columns to spare.
    assert max(columns) <= 13 + FEWEST_SPARE


def test_no_hook_is_open_where_answers_are_handed_out(model: SteeredModel):
    model.steer("caa", [EditLayer(1, Add(VECTORS[0]))])
    for _ in generate_batches(model, PROMPTS, NEVER | {"max_new_tokens": 3}, batch_size=4):
        assert hooks_on(model.model) == []
    decoder = ContinuousDecoder(model, 4)
    for request in requests_of(model, [model.interventions()] * len(PROMPTS)):
        decoder.add(request)
    while not hooks_on(model.model):
        decoder.step()
    decoder.pause()
    assert hooks_on(model.model) == []


# ---- what cannot be filled up ----


@pytest.mark.parametrize("kind", ["mamba", "phi3", "recurrent_gemma"])
def test_models_that_keep_another_state_use_fixed_batches(kind: str):
    small = {"hidden_size": 32, "num_hidden_layers": 3, "vocab_size": 258, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **small, num_attention_heads=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert not can_refill(SteeredModel(model, byte_tokenizer()))


@pytest.mark.parametrize(
    "params",
    [{"num_beams": 2}, {"no_repeat_ngram_size": 2}, {"use_cache": False}, {"bad_words_ids": [[3]]}],
    ids=str,
)
def test_parameters_that_cannot_be_followed_use_fixed_batches(
    model: SteeredModel, params: dict[str, Any]
):
    options = NEVER | {"max_new_tokens": 4} | params
    with pytest.raises(ValueError, match=f"^{next(iter(params))}: not possible where rows take"):
        request_of(model, 0, [1], options)
    batches = list(generate_batches(model, PROMPTS[:5], options, batch_size=2))
    assert [len(rows) for rows, _ in batches] == [2, 2, 1]
    request = Request(0, PROMPTS[0], 4, manner(model))
    found = answers_of(batches)[0]
    assert found == alone(model, request, **params)


def test_the_old_cache_that_gemmas_own_file_asks_for_is_followed_by_all():
    model = steered(tiny_config("gemma2"))
    model.model.generation_config.cache_implementation = "hybrid"
    request = request_of(model, 0, PROMPTS[1], NEVER | {"max_new_tokens": 4})
    assert drain(ContinuousDecoder(model, 2), [request]) == {0: alone(model, request)}
    config, _ = settings_of(model, [], {})
    check_known(config)
    check_followed(config)
    with pytest.raises(ValueError, match=r"^cache_implementation: not possible where rows take"):
        request_of(model, 0, [1], {"cache_implementation": "hybrid"})


def test_a_request_is_for_one_row(model: SteeredModel):
    with pytest.raises(ValueError, match=r"^steering is given for 12 rows, there are 1$"):
        request_of(model, 0, [1], {}, interventions=[EditLayer(1, Add(VECTORS))])
