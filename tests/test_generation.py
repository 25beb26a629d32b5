"""Answers in batches: the same whatever the batch, and what transformers would have said."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import slow_but
from tiny import ids_of, steered, tiny_config
from torch import Tensor
from transformers import LogitsProcessorList

from steer.models import Add, Answer, ChatFormat, EditLayer, EditPrompt, SteeredModel, generate
from steer.models.batching import padded, run_batches
from steer.models.generation import generate_batches
from steer.models.positions import FROM_PROMPT_END, GENERATED, TokenMask
from steer.models.sampling import SeededSampling
from steer.models.tally import Tally

PROMPTS = ids_of([4, 9, 2, 7, 7, 1, 5])
VECTORS = 3 * torch.randn(len(PROMPTS), 16, generator=torch.Generator().manual_seed(1))
GREEDY = {"do_sample": False, "max_new_tokens": 8}
# No token has that number: nothing ends before its time.
NEVER = {"eos_token_id": 9999}


def answers_to(
    model: SteeredModel, params: dict[str, Any], prompts: Sequence[list[int]] = PROMPTS, **more: Any
) -> list[Answer]:
    """Answers in the prompts' order."""
    batches = generate_batches(model, prompts, params, **more)
    found = {row: one for rows, batch in batches for row, one in zip(rows, batch, strict=True)}
    return [found[row] for row in range(len(prompts))]


def new_ids(*args: Any, **more: Any) -> list[list[int]]:
    return [answer.new_ids for answer in answers_to(*args, **more)]


def transformers_alone(model: SteeredModel, prompt: list[int], **params: Any) -> list[int]:
    """What transformers makes of one prompt, pads behind the end included."""
    ids = torch.tensor([prompt])
    out = model.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **params)
    return out[0, len(prompt) :].tolist()


def test_unsteered_answers_are_those_of_transformers(model: SteeredModel):
    expected = [transformers_alone(model, prompt, **GREEDY, **NEVER) for prompt in PROMPTS]
    assert new_ids(model, GREEDY | NEVER) == expected
    model.steer("caa", [EditLayer(1, Add(VECTORS[0]))])
    assert new_ids(model, GREEDY | NEVER, interventions=[]) == expected
    assert new_ids(model, GREEDY | NEVER) != expected


def test_a_steered_batch_gives_what_single_rows_give(every: SteeredModel):
    every.steer("caa", [EditLayer(1, Add(VECTORS[0]), FROM_PROMPT_END)])
    every.steer("sta", [EditLayer(2, Add(VECTORS[1], -1.0))])
    alone = [new_ids(every, GREEDY, [prompt])[0] for prompt in PROMPTS[:4]]
    assert new_ids(every, GREEDY, PROMPTS[:4]) == alone


def test_the_answers_come_in_the_order_of_the_prompts_longest_first_inside(model: SteeredModel):
    rows = [rows for rows, _ in generate_batches(model, PROMPTS, GREEDY | NEVER, batch_size=3)]
    assert rows == [[1, 3, 4], [6, 0, 2], [5]]
    answers = generate(model, ["a", "bcd", "ef"], **GREEDY)
    assert [answer.prompt_ids for answer in answers] == [[97 - 33], [65, 66, 67], [68, 69]]


def test_text_and_complete_are_the_decoded_tokens(model: SteeredModel):
    (answer,) = generate(model, ["Hello"], max_new_tokens=3)
    assert answer.text == model.tokenizer.decode(answer.new_ids, skip_special_tokens=True)
    assert answer.complete == model.tokenizer.decode(answer.prompt_ids + answer.new_ids)
    assert answer.complete.startswith("Hello")


def test_steering_prompts_go_before_the_text_only_where_steered(model: SteeredModel):
    model.steer("prompt", [EditPrompt("Be brief.")])
    model.steer("caa", [EditLayer(1, Add(VECTORS[0]))])
    chat = ChatFormat(use_chat_template=True)
    (steered,) = generate(model, ["Hi"], chat=chat, **GREEDY)
    assert steered.complete.startswith("<user>Be brief. Hi\n<assistant>")
    (plain,) = generate(model, ["Hi"], chat=chat, steered=False, **GREEDY)
    assert plain.complete.startswith("<user>Hi\n<assistant>")
    assert plain.new_ids == transformers_alone(model, plain.prompt_ids, **GREEDY)


# ---- sampling ----

SAMPLED = {"do_sample": True, "max_new_tokens": 6, "temperature": 1.5, "top_k": 0}
SEEDS = [(7, row) for row in range(len(PROMPTS))]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_sampled_answers_do_not_depend_on_the_batch(model: SteeredModel, batch_size: int):
    whole = new_ids(model, SAMPLED, seeds=SEEDS)
    assert new_ids(model, SAMPLED, seeds=SEEDS, batch_size=batch_size) == whole


def test_sampled_answers_do_not_depend_on_the_order(model: SteeredModel):
    whole = new_ids(model, SAMPLED, seeds=SEEDS)
    order = [3, 0, 6, 1, 5, 4, 2]
    turned = new_ids(model, SAMPLED, [PROMPTS[n] for n in order], seeds=[SEEDS[n] for n in order])
    assert turned == [whole[n] for n in order]


def test_other_seeds_give_other_answers_and_the_rest_of_the_world_has_no_say(model: SteeredModel):
    torch.manual_seed(1)
    first = new_ids(model, SAMPLED, seeds=SEEDS)
    torch.manual_seed(2)
    assert new_ids(model, SAMPLED, seeds=SEEDS) == first
    assert new_ids(model, SAMPLED, seeds=[(8, row) for row in range(7)]) != first
    same = new_ids(model, SAMPLED | NEVER, [PROMPTS[0]] * 2, seeds=[(1, 0), (1, 1)])
    assert same[0] != same[1]


@pytest.fixture(scope="module")
def one_model() -> SteeredModel:
    return steered(tiny_config("llama"))


WARPED = [
    {"top_k": 0},
    {"temperature": 0.3, "top_k": 0},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_k": 0, "top_p": 0.3},
    {"top_k": 20, "top_p": 0.8, "temperature": 0.5},
    {"top_k": 0, "min_p": 0.5},
    {"top_k": 0, "typical_p": 0.4},
    {"top_k": 0, "epsilon_cutoff": 0.006},
    {"top_k": 0, "eta_cutoff": 0.02},
    {"top_h": 0.3},
    {"repetition_penalty": 3.0, "top_k": 5},
]


@pytest.mark.parametrize(
    "params",
    slow_but(WARPED[:2], WARPED),
    ids=lambda p: " ".join(f"{k}={v}" for k, v in p.items()),
)
def test_tokens_are_as_frequent_as_transformers_own_warpers_say(
    one_model: SteeredModel, params: dict[str, Any]
):
    prompt, n = PROMPTS[0], 2000
    one = {"do_sample": True, "max_new_tokens": 1, **params}
    ids = torch.tensor([prompt])
    out = one_model.model.generate(
        input_ids=ids, **one, output_scores=True, return_dict_in_generate=True
    )
    expected = out.scores[0][0].double().softmax(-1) * n
    drawn = new_ids(one_model, one, [prompt] * n, batch_size=n)
    counts = torch.bincount(torch.tensor(drawn).flatten(), minlength=258).double()
    assert not counts[expected == 0].any()
    # Chi-square with k degrees of freedom has mean k and variance 2k; five deviations is loose.
    k = int((expected > 0).sum()) - 1
    kept = expected > 0
    chi = float(((counts - expected)[kept] ** 2 / expected[kept]).sum())
    assert abs(chi - k) < 5 * (2 * k) ** 0.5 + 5


def test_a_token_that_was_ruled_out_is_not_drawn_however_the_numbers_round():
    class Almost(SeededSampling):
        def __init__(self) -> None:
            super().__init__([(0,)], LogitsProcessorList())
            self.generators = [self]

        def random(self) -> float:
            return 1.0

    scores = torch.tensor([[1.0, 2.0, -torch.inf, -torch.inf]])
    assert Almost()(torch.zeros(1, 1), scores).argmax() == 1


# ---- parameters ----


@pytest.mark.parametrize("name", ["temperature", "top_p"])
def test_sampling_settings_without_sampling_are_warned_of(
    model: SteeredModel, caplog: pytest.LogCaptureFixture, name: str
):
    answer = new_ids(model, GREEDY | {name: 0.5}, PROMPTS[:1])
    assert caplog.messages == [f"{name} has no effect without do_sample: true"]
    assert answer == new_ids(model, GREEDY, PROMPTS[:1])


@pytest.mark.parametrize("sampled", [True, False])
def test_the_models_own_sampling_settings_hold_and_are_not_warned_of(
    model: SteeredModel, caplog: pytest.LogCaptureFixture, sampled: bool
):
    logging.Logger.warning_once.cache_clear()  # transformers says most things only once
    theirs = model.model.generation_config
    theirs.do_sample, theirs.temperature, theirs.top_k, theirs.top_p = True, 0.6, 20, 0.9
    params = {"max_new_tokens": 4} | ({} if sampled else {"do_sample": False})
    explicit = {"max_new_tokens": 4, "do_sample": sampled}
    found = new_ids(model, params)
    theirs.do_sample, theirs.temperature, theirs.top_k, theirs.top_p = None, None, None, None
    if sampled:
        explicit |= {"temperature": 0.6, "top_k": 20, "top_p": 0.9}
    assert found == new_ids(model, explicit)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "params, message",
    [
        ({"max_new_token": 3}, r"unknown generation parameter 'max_new_token'; did you mean 'max_"),
        ({"update": 3}, r"unknown generation parameter 'update' \(allowed: assistant_conf"),
        ({"num_return_sequences": 2}, "^num_return_sequences is not supported: use num_responses$"),
        ({"return_dict_in_generate": True}, "^return_dict_in_generate is not supported: answers"),
        ({"min_length": 3}, "^min_length is not supported: use min_new_tokens$"),
        ({"do_sample": True, "temperature": 0.0}, "strictly positive float"),
        ({"batch_size": 0}, "^batch_size must be auto or 1 and more: got 0$"),
        ({"batch_size": "many"}, "^batch_size must be auto or 1 and more: got 'many'$"),
    ],
)
def test_what_cannot_be_is_refused(model: SteeredModel, params: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        generate(model, ["Hello"], **params)


def test_settings_that_say_what_is_so_anyway_are_taken(model: SteeredModel):
    said = {"num_return_sequences": 1, "return_dict_in_generate": False, "temperature": None}
    assert new_ids(model, GREEDY | said) == new_ids(model, GREEDY)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_a_repetition_penalty_does_not_see_the_padding(model: SteeredModel, more: dict[str, Any]):
    # The token of the padding is what every row would say, were it not punished.
    model.steer("caa", [EditLayer(2, Add(40 * model.model.get_output_embeddings().weight[257]))])
    params = GREEDY | NEVER | {"repetition_penalty": 3.0, "max_new_tokens": 4} | more
    alone = new_ids(model, params, batch_size=1, seeds=SEEDS)
    assert new_ids(model, params, seeds=SEEDS) == alone
    assert alone != new_ids(model, GREEDY | NEVER | more, seeds=SEEDS)


def test_the_repetition_penalty_is_that_of_transformers(model: SteeredModel):
    params = GREEDY | NEVER | {"repetition_penalty": 1.5}
    expected = [transformers_alone(model, prompt, **params) for prompt in PROMPTS]
    assert new_ids(model, params) == expected
    assert expected != new_ids(model, GREEDY | NEVER)


# ---- where answers end ----


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_greatest_length_is_each_rows_own(model: SteeredModel, batch_size: int):
    limit = {"do_sample": False, "max_length": 12}
    found = new_ids(model, limit | NEVER, batch_size=batch_size)
    assert [len(row) for row in found] == [12 - len(prompt) for prompt in PROMPTS]
    assert found[1] == transformers_alone(model, PROMPTS[1], **limit, **NEVER)
    with pytest.raises(ValueError, match=r"^max_length 9 leaves no room behind a prompt of 9 tok"):
        new_ids(model, limit | {"max_length": 9})


def test_twenty_tokens_are_said_where_nobody_says_how_many(model: SteeredModel):
    assert {len(row) for row in new_ids(model, {"do_sample": False, **NEVER})} == {20}


def test_the_models_own_greatest_length_yields_to_max_new_tokens(
    model: SteeredModel, caplog: pytest.LogCaptureFixture
):
    model.model.generation_config.max_length = 10
    assert {len(row) for row in new_ids(model, GREEDY | NEVER)} == {8}
    assert caplog.messages == []
    assert [len(row) for row in new_ids(model, NEVER, PROMPTS[:2])] == [6, 1]


def test_a_prompt_without_tokens_begins_with_the_first_one(model: SteeredModel):
    empty, other = generate(model, ["", "abc"], **GREEDY)
    assert empty.prompt_ids == [256]
    assert empty.new_ids == generate(model, [""], **GREEDY)[0].new_ids
    assert empty.new_ids == transformers_alone(model, [256], **GREEDY)
    assert other.new_ids == generate(model, ["abc"], **GREEDY)[0].new_ids


@pytest.mark.parametrize("pad", [257, 256])
def test_answers_end_with_their_end_of_text_token(model: SteeredModel, pad: int):
    model.tokenizer.pad_token_id = pad
    long = new_ids(model, GREEDY | NEVER)
    ends = [long[0][3], long[1][5]]
    assert new_ids(model, GREEDY | {"eos_token_id": ends}) == [first(row, ends) for row in long]


def first(row: list[int], ends: Sequence[int]) -> list[int]:
    """The row up to and with the first of `ends`, by hand."""
    places = [row.index(end) for end in ends if end in row]
    return row[: min(places) + 1] if places else row


def test_the_tokenizers_end_of_text_holds_where_the_model_names_none(model: SteeredModel):
    long = new_ids(model, GREEDY | NEVER)
    model.model.generation_config.eos_token_id = None
    model.tokenizer.eos_token_id = long[2][2]
    answers = new_ids(model, GREEDY)
    assert answers == [first(row, [long[2][2]]) for row in long]


def test_a_tokenizer_without_padding_will_do(model: SteeredModel):
    expected = new_ids(model, GREEDY)
    model.tokenizer.pad_token = None
    assert new_ids(model, GREEDY) == expected
    model.tokenizer.eos_token = None
    assert new_ids(model, GREEDY) == expected


# The last is the end-of-text token: the padding looks like an end that was said.
@pytest.mark.parametrize("pad", [257, 256])
def test_answers_end_with_a_stop_string(model: SteeredModel, pad: int):
    long = [answer.new_ids for answer in answers_to(model, GREEDY | NEVER)]
    stop = next(token for token in (t for row in long for t in row[1:-2]) if token < 94)
    model.tokenizer.pad_token_id = pad
    found = answers_to(model, GREEDY | {"stop_strings": chr(stop + 33), "eos_token_id": 256})
    assert [answer.new_ids for answer in found] == [first(row, [stop, 256]) for row in long]
    assert any(answer.text.endswith(chr(stop + 33)) for answer in found)


def test_a_stop_string_may_begin_in_the_prompt(model: SteeredModel):
    answers = generate(model, list("abcdefghijkl"), **GREEDY)
    letter, answer = next(
        (letter, answer)
        for letter, answer in zip("abcdefghijkl", answers, strict=True)
        if answer.new_ids[0] < 94
    )
    stop = letter + chr(answer.new_ids[0] + 33)
    (cut,) = generate(model, [letter], **GREEDY, stop_strings=[stop])
    assert cut.new_ids == answer.new_ids[:1]


# ---- memory ----


class Small:
    """A `generate` that has memory for `rows` rows."""

    def __init__(self, model: SteeredModel, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, self.tried, self.generate = rows, [], model.model.generate
        monkeypatch.setattr(model.model, "generate", self)

    def __call__(self, input_ids: Tensor, **more: Any) -> Tensor:
        self.tried.append(len(input_ids))
        if len(input_ids) > self.rows:
            self.generate(input_ids=input_ids, **more)
            raise torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory.")
        return self.generate(input_ids=input_ids, **more)


@pytest.mark.slow
def test_an_automatic_batch_is_halved_when_memory_runs_out(
    model: SteeredModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    params = SAMPLED | NEVER | {"max_new_tokens": 3}
    model.steer("caa", [EditLayer(1, Add(VECTORS), GENERATED)])
    counts: Tally = {}
    expected = new_ids(model, params, seeds=SEEDS, batch_size=2, tally=counts)
    small, again = Small(model, 2, monkeypatch), {}
    assert new_ids(model, params, seeds=SEEDS, tally=again) == expected
    assert small.tried == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert caplog.messages == [
        "out of memory with 7 rows in a batch: going on with 3",
        "out of memory with 3 rows in a batch: going on with 1",
    ]
    said, all_said = again[1].summary(), counts[1].summary()
    assert said["tokens"] == all_said["tokens"] == 7 * 2
    assert said["dose"] == pytest.approx(all_said["dose"])


def test_a_batch_of_fixed_size_that_does_not_fit_is_an_error(
    model: SteeredModel, monkeypatch: pytest.MonkeyPatch
):
    small = Small(model, 2, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        new_ids(model, GREEDY, batch_size=7)
    assert small.tried == [7]


def fail(error: Exception) -> None:
    raise error


def test_one_row_that_does_not_fit_and_other_errors_are_errors():
    with pytest.raises(torch.OutOfMemoryError):
        list(run_batches([1, 1], 2, lambda rows: fail(torch.OutOfMemoryError())))
    with pytest.raises(RuntimeError, match="the shapes do not fit"):
        list(run_batches([1, 1], 2, lambda rows: fail(RuntimeError("the shapes do not fit"))))


def test_a_batch_holds_no_more_tokens_than_it_may_and_one_row_at_least():
    batches = run_batches([9, 2, 3, 20, 3], 3, lambda rows: None, max_tokens=10)
    assert [rows for rows, _ in batches] == [[3], [0], [2, 4, 1]]


def test_rows_are_padded_on_the_side_asked_for():
    ids, mask = padded([[1, 2, 3], [4]], 9, "left", torch.device("cpu"))
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [9, 9, 4]], [[1, 1, 1], [0, 0, 1]])
    ids, mask = padded([[1, 2, 3], [4]], 9, "right", torch.device("cpu"))
    assert (ids.tolist(), mask.tolist()) == ([[1, 2, 3], [4, 9, 9]], [[1, 1, 1], [1, 0, 0]])


# ---- beams ----


@pytest.mark.slow
def test_beams_are_steered_as_their_row_is(model: SteeredModel):
    beams = GREEDY | NEVER | {"num_beams": 2}
    strengths = torch.tensor([1.0, -1.0, 0.5, 2.0, 1.0, 0.0, 3.0])
    expected = []
    for prompt, vector, strength in zip(PROMPTS, VECTORS, strengths, strict=True):
        block = model.blocks[1]
        hook = block.register_forward_hook(lambda _m, _a, h, v=strength * vector: h + v)
        expected.append(transformers_alone(model, prompt, **beams))
        hook.remove()
    assert new_ids(model, beams, interventions=[EditLayer(1, Add(VECTORS, strengths))]) == expected
    assert new_ids(model, beams, interventions=[]) != expected


def test_beams_keep_the_positions_of_their_row(model: SteeredModel):
    beams = GREEDY | NEVER | {"num_beams": 2}
    where = [GENERATED, FROM_PROMPT_END] * 3 + [GENERATED]
    edit = EditLayer(1, Add(VECTORS), where)
    alone = [new_ids(model, beams, batch_size=1, interventions=[edit])]
    assert [new_ids(model, beams, interventions=[edit])] == alone


def test_sampled_beams_are_the_same_again(model: SteeredModel):
    beams = SAMPLED | {"num_beams": 2}
    first = new_ids(model, beams, seeds=SEEDS)
    assert new_ids(model, beams, seeds=SEEDS) == first


# ---- rows ----


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        EditLayer(1, Add(VECTORS[:1], torch.tensor([2.0])), [FROM_PROMPT_END]),
        EditLayer(1, Add(VECTORS[0], 2.0), TokenMask(torch.ones(1, 30, dtype=torch.bool))),
    ],
    ids=["vector", "mask"],
)
def test_what_is_given_for_one_row_is_for_all(model: SteeredModel, edit: EditLayer):
    alone = [new_ids(model, GREEDY, [prompt], interventions=[edit])[0] for prompt in PROMPTS]
    assert new_ids(model, GREEDY, interventions=[edit], batch_size=2) == alone


@pytest.mark.parametrize(
    "edit, count",
    [
        (EditLayer(1, Add(VECTORS[:3])), 3),
        (EditLayer(1, Add(VECTORS[0], torch.ones(8))), 8),
        (EditLayer(1, Add(VECTORS), [GENERATED] * 2), 2),
        (EditLayer(1, Add(VECTORS), TokenMask(torch.ones(9, 4, dtype=torch.bool))), 9),
    ],
)
def test_what_is_given_for_other_rows_is_refused(model: SteeredModel, edit: EditLayer, count: int):
    with pytest.raises(ValueError, match=f"^steering is given for {count} rows, there are 7$"):
        new_ids(model, GREEDY, interventions=[edit])
