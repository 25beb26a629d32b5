"""What steering does, in numbers that can be had another way."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import adding, full_logits, ids_of
from tokenizers import Tokenizer, models
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from steer.effect import (
    Group,
    Pair,
    bootstrap,
    divergence,
    measure_effect,
    pairs_of,
    perplexity_ratio,
    randomised,
)
from steer.judging import effect_on, effects_on
from steer.likelihood import answer_log_probs
from steer.models import (
    EVERYWHERE,
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    Answer,
    ChatFormat,
    EditLayer,
    EditPrompt,
    Gate,
    Positions,
    SteeredModel,
)

pytestmark = pytest.mark.slow

VECTOR = torch.randn(16, generator=torch.Generator().manual_seed(1))
PLUS, MINUS = 80, 90  # the first tokens of the answers that are wanted, and of those that are not


def pairs(count: int) -> list[Pair]:
    rows = zip(ids_of([4] * count), ids_of([2] * count, 1), ids_of([3] * count, 2), strict=True)
    return [Pair(prompt, [PLUS, *one], [MINUS, *other]) for prompt, one, other in rows]


def total(model: SteeredModel, prompt: list[int], answer: list[int], vector: torch.Tensor) -> float:
    """log P(answer | prompt) with `vector` added to the last block."""
    edits = {2: lambda hidden: hidden + vector}
    log_probs = full_logits(model, prompt + answer, edits).log_softmax(-1)
    return sum(float(log_probs[len(prompt) - 1 + n, token]) for n, token in enumerate(answer))


# ---- bootstrap ----


def test_the_interval_of_a_constant_is_the_constant():
    assert bootstrap(torch.full((7,), 2.5)) == (2.5, 2.5)


def test_the_interval_of_0_and_1_reaches_from_0_to_1():
    # Two draws give 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4.
    assert bootstrap(torch.tensor([0.0, 1.0])) == (0.0, 1.0)


def test_the_interval_of_many_is_the_normal_one():
    # 400 values of mean 1 and standard deviation 2: 1 -+ 1.96 * 2 / 20.
    low, high = bootstrap(torch.tensor([-1.0, 3.0] * 200))
    assert low == pytest.approx(1 - 0.196, abs=0.015)
    assert high == pytest.approx(1 + 0.196, abs=0.015)


def test_the_interval_is_the_same_every_time():
    values = torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert bootstrap(values) == bootstrap(values)


# ---- random vectors ----


def test_random_vectors_keep_norm_layer_strength_and_place(model: SteeredModel):
    steps = [EditLayer(0, Add(VECTOR, -2.0)), EditLayer(2, Add(torch.randn(3, 16), 0.5))]
    first, second = randomised(model, steps, 0), randomised(model, steps, 1)
    for random in (first, second):
        assert [step.layer for step in random] == [0, 2]
        assert [step.edit.strength for step in random] == [-2.0, 0.5]
        for step, given in zip(random, steps, strict=True):
            torch.testing.assert_close(
                step.edit.vector.norm(dim=-1), given.edit.vector.norm(dim=-1)
            )
    assert all(
        not torch.allclose(a.edit.vector, b.edit.vector) for a, b in zip(first, second, strict=True)
    )
    assert torch.equal(randomised(model, steps, 1)[0].edit.vector, second[0].edit.vector)


# ---- effect ----


def test_the_effect_is_that_of_the_slow_loop_and_turns_with_the_vector(model: SteeredModel):
    chosen = pairs(6)
    head = model.model.get_output_embeddings().weight
    vector = 20 * (head[PLUS] - head[MINUS]).detach()
    zero = torch.zeros(16)
    changes = [
        total(model, p.prompt, p.matching, vector)
        - total(model, p.prompt, p.not_matching, vector)
        - total(model, p.prompt, p.matching, zero)
        + total(model, p.prompt, p.not_matching, zero)
        for p in chosen
    ]
    effect = measure_effect(model, [Group(chosen, [EditLayer(2, Add(vector))])], "here", controls=2)
    assert effect.mean == pytest.approx(sum(changes) / 6, abs=1e-3)
    assert 0 < effect.low < effect.mean < effect.high
    assert (effect.pairs, effect.source, len(effect.controls)) == (6, "here", 2)
    turned = measure_effect(model, [Group(chosen, [EditLayer(2, Add(vector, -1.0))])], "here", 0)
    assert turned.mean < 0
    assert turned.controls == []


def test_a_random_vector_has_the_effect_reported_for_it(model: SteeredModel):
    steps = [EditLayer(1, Add(5 * VECTOR))]
    effect = measure_effect(model, [Group(pairs(3), steps)], "here", controls=2)
    for seed in (0, 1):
        alone = measure_effect(
            model, [Group(pairs(3), randomised(model, steps, seed))], "here", controls=0
        )
        assert effect.controls[seed] == pytest.approx(alone.mean, abs=1e-4)


def test_folds_are_each_judged_with_their_own_vector(model: SteeredModel):
    chosen = pairs(5)
    steps = [EditLayer(1, Add(5 * VECTOR))], [EditLayer(1, Add(-5 * VECTOR))]
    parts = [
        measure_effect(model, [Group(half, own)], "", controls=0)
        for half, own in zip((chosen[:2], chosen[2:]), steps, strict=True)
    ]
    whole = measure_effect(
        model, [Group(chosen[:2], steps[0]), Group(chosen[2:], steps[1])], "", controls=0
    )
    assert whole.mean == pytest.approx((2 * parts[0].mean + 3 * parts[1].mean) / 5, abs=1e-4)


def test_what_is_in_force_has_no_say(model: SteeredModel):
    groups = [Group(pairs(3), [EditLayer(1, Add(VECTOR))])]
    before = measure_effect(model, groups, "here", controls=1)
    model.steer("caa", [EditLayer(1, Add(9 * VECTOR))])
    assert measure_effect(model, groups, "here", controls=1) == before


def test_a_steering_prompt_is_judged_as_text_before_the_question(model: SteeredModel):
    prompt = EditPrompt("Be kind.")
    plain, kind = ROW, ROW | {"question": f"Be kind. {ROW['question']}"}
    before, after = (pairs_of(model, [row], ChatFormat())[0] for row in (plain, kind))
    none = torch.zeros(16)
    margins = [
        total(model, p.prompt, p.matching, none) - total(model, p.prompt, p.not_matching, none)
        for p in (before, after)
    ]
    group = Group.of(model, [plain], ChatFormat(), [prompt])
    effect = measure_effect(model, [group], "here", controls=2)
    assert effect.mean == pytest.approx(margins[1] - margins[0], abs=1e-4)
    (random,) = randomised(model, [prompt], 0)
    assert isinstance(random, EditPrompt)
    control = measure_effect(model, [replace(group, steps=[random])], "here", controls=0)
    assert effect.controls[0] == pytest.approx(control.mean, abs=1e-4)
    with pytest.raises(ValueError, match=r"use Group\.of"):
        measure_effect(model, [Group(pairs(2), [prompt])], "here")


def test_what_is_in_force_is_judged_on_the_rows_given(model: SteeredModel):
    rows = [ROW, ROW | {"question": "ba", "matching": "yx"}]
    model.steer("caa", [EditLayer(2, Add(VECTOR))])
    changes = []
    for pair in pairs_of(model, rows, ChatFormat()):
        wanted, shunned = (
            total(model, pair.prompt, answer, VECTOR)
            - total(model, pair.prompt, answer, torch.zeros(16))
            for answer in (pair.matching, pair.not_matching)
        )
        changes.append(wanted - shunned)
    found = effect_on(model, rows, ChatFormat(), controls=3)
    assert found.mean == pytest.approx(sum(changes) / 2, abs=1e-3)
    assert (found.low, found.high) == pytest.approx((min(changes), max(changes)), abs=1e-3)
    assert (found.pairs, len(found.controls)) == (2, 3)
    model.reset_all()
    nothing = effect_on(model, rows, ChatFormat())
    assert (nothing.mean, nothing.low, nothing.high, nothing.controls) == (0, 0, 0, [])
    with pytest.raises(ValueError, match="no pairs to measure the effect on"):
        effect_on(model, [], ChatFormat())


def test_many_steerings_have_the_effects_that_each_has_alone(model: SteeredModel):
    rows = [ROW, ROW | {"question": "ba", "matching": "yx"}, ROW | {"question": "bab"}]
    steerings = [
        [EditLayer(2, Add(VECTOR))],
        [],
        [EditLayer(1, Add(VECTOR, -3.0)), EditLayer(2, Add(VECTOR))],
        [EditPrompt("Be kind.")],
    ]
    found = effects_on(model, rows, ChatFormat(), steerings)
    for steps, effect in zip(steerings, found, strict=True):
        model.steer("alone", steps)
        alone = effect_on(model, rows, ChatFormat())
        numbers = (alone.mean, alone.low, alone.high)
        assert (effect.mean, effect.low, effect.high) == pytest.approx(numbers, abs=1e-4)
        assert effect.pairs == 3
    with pytest.raises(ValueError, match="no pairs to measure the effect on"):
        effects_on(model, [], ChatFormat(), steerings)


def test_tuples_are_judged_as_the_rows_they_stand_for(model: SteeredModel):
    steps, tuples = [EditLayer(2, Add(VECTOR))], [("ab", "x", "yz")]
    model.steer("caa", steps)
    expected = effect_on(model, [ROW], ChatFormat())
    assert effect_on(model, tuples, ChatFormat()) == expected
    assert effects_on(model, tuples, ChatFormat(), [steps])[0].mean == expected.mean != 0


# ---- pairs ----

ROW = {"question": "ab", "matching": "x", "not_matching": "yz"}


def test_a_pair_is_a_prompt_and_two_answers(model: SteeredModel):
    letter = {c: ord(c) - 33 for c in "abxyz"}
    space = model.tokenizer(" ")["input_ids"]
    (pair,) = pairs_of(model, [ROW], ChatFormat())
    assert pair.prompt == [letter["a"], letter["b"]]
    assert pair.matching == [*space, letter["x"]]
    assert pair.not_matching == [*space, letter["y"], letter["z"]]


def test_the_chat_template_goes_before_the_answers(model: SteeredModel):
    chat = ChatFormat(use_chat_template=True, system_prompt="S")
    (pair,) = pairs_of(model, [ROW], chat)
    assert model.tokenizer.decode(pair.prompt) == "<system>S\n<user>ab\n<assistant>"
    assert model.tokenizer.decode(pair.matching) == " x"


def test_an_answer_without_a_question_is_scored_from_its_first_token(model: SteeredModel):
    (pair,) = pairs_of(model, [ROW | {"question": ""}], ChatFormat())
    texts = [model.tokenizer.decode(ids) for ids in (pair.prompt, pair.matching, pair.not_matching)]
    assert texts == ["<eos>", " x", " yz"]


def merging() -> PreTrainedTokenizerFast:
    """Joins a space and the letter x to one token."""
    merged = Tokenizer(
        models.BPE(
            vocab={"b": 0, " ": 1, "x": 2, "y": 3, " x": 4, "b x": 5},
            merges=[(" ", "x"), ("b", " x")],
        )
    )
    return PreTrainedTokenizerFast(tokenizer_object=merged)


def test_tokens_that_merge_with_one_answer_are_scored_with_both(model: SteeredModel):
    # "b x" is one token, "b y" three: what the two sides share is only what stands before.
    other = SteeredModel(model.model, merging())
    (pair,) = pairs_of(other, [ROW | {"question": "bb", "not_matching": "y"}], ChatFormat())
    assert (pair.prompt, pair.matching, pair.not_matching) == ([0], [5], [0, 1, 3])


def test_a_row_without_an_answer_is_named(model: SteeredModel):
    with pytest.raises(ValueError, match=r"^row 2: 'matching' is empty"):
        pairs_of(model, [ROW, ROW | {"matching": " "}], ChatFormat())


# ---- text that should not change ----


def test_the_divergence_is_that_of_the_slow_loop(model: SteeredModel):
    texts = ["a", "hello you", "why", "not so long", "b", "the sixth"]
    each = []
    for text in texts:
        ids = model.tokenizer(text)["input_ids"]
        plain = full_logits(model, ids).log_softmax(-1)
        steered = full_logits(model, ids, {1: lambda hidden: hidden + VECTOR}).log_softmax(-1)
        each += (plain.exp() * (plain - steered)).sum(-1).tolist()
    found = divergence(model, texts, [EditLayer(1, Add(VECTOR))])
    assert found == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert len(each) == sum(map(len, texts))
    assert divergence(model, texts, []) == 0


def slow_divergence(model: SteeredModel, text: str, start: str, columns: list[int]) -> list[float]:
    """KL of each prediction on `text`, behind `start` where steered, VECTOR added to `columns`."""
    own = model.tokenizer(text)["input_ids"]
    ids = [*model.tokenizer(start)["input_ids"], *own]
    plain = full_logits(model, own).log_softmax(-1)
    steered = full_logits(model, ids, {1: adding(VECTOR, columns)}).log_softmax(-1)[-len(own) :]
    return (plain.exp() * (plain - steered)).sum(-1).tolist()


@pytest.mark.parametrize("start", ["", "Be kind. "])
@pytest.mark.parametrize(
    "where, first, last",
    [(EVERYWHERE, None, 99), (GENERATED, 0, 99), (FROM_PROMPT_END, -1, 99), (PROMPT, None, -1)],
)
def test_a_text_is_an_answer_to_its_first_token(
    model: SteeredModel, where: Positions, first: int | None, last: int, start: str
):
    each, texts = [], ["a", "hello you", "not so long"]
    for text in texts:
        count, prompt = len(start) + len(text), len(start) + 1
        begin = 0 if first is None else prompt + first
        columns = list(range(begin, min(prompt + last + 1, count)))
        each += slow_divergence(model, text, start, columns)
    steps = [EditLayer(1, Add(VECTOR), where)]
    found = divergence(model, texts, [*steps, EditPrompt("Be kind.")] if start else steps)
    assert found == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert found > 0.01


def test_a_gate_by_row_reads_the_whole_text(model: SteeredModel):
    texts, scores, each = ["a", "hello you", "why", "not so long", "zz zz"], [], []
    for text in texts:
        seen: list[torch.Tensor] = []
        ids = model.tokenizer(text)["input_ids"]
        full_logits(model, ids, {0: lambda hidden, seen=seen: seen.append(hidden) or hidden})
        scores.append(float(torch.cosine_similarity(seen[0], VECTOR, dim=-1).mean()))
    threshold = sum(sorted(scores)[1:3]) / 2
    for text, score in zip(texts, scores, strict=True):
        columns = list(range(1, len(text))) if score > threshold else []
        each += slow_divergence(model, text, "", columns)
    step = EditLayer(1, Add(VECTOR), GENERATED, Gate(0, VECTOR, threshold))
    found = divergence(model, texts, [step])
    assert found == pytest.approx(sum(each) / len(each), rel=1e-3)
    assert 0 < found < divergence(model, texts, [replace(step, gate=None)])


def test_the_perplexity_ratio_is_that_of_the_slow_loop(model: SteeredModel):
    model.steer("caa", [EditLayer(2, Add(9 * VECTOR))])
    zero = torch.zeros(16)
    steered = [Answer([1, 2], [3, 4, 5], "", ""), Answer([6], [7], "", ""), Answer([1], [], "", "")]
    plain = [Answer([1, 2], [8], "", ""), Answer([6], [9, 9], "", "")]
    means = []
    for answers in (steered, plain):
        logs = sum(total(model, a.prompt_ids, a.new_ids, zero) for a in answers if a.new_ids)
        means.append(logs / sum(len(a.new_ids) for a in answers))
    expected = math.exp(means[1] - means[0])
    score = partial(answer_log_probs, model, interventions=[])
    assert perplexity_ratio(score, steered, plain) == pytest.approx(expected, rel=1e-4)
    assert perplexity_ratio(score, steered, [Answer([1], [], "", "")]) is None


def test_random_vectors_are_compared_on_the_first_pairs(model: SteeredModel):
    steps = [EditLayer(1, Add(5 * VECTOR))]
    many = pairs(14)
    effect = measure_effect(model, [Group(many, steps)], "here", controls=1)
    first = measure_effect(model, [Group(many[:12], steps)], "here", controls=1)
    assert (effect.pairs, effect.control_pairs) == (14, 12)
    assert effect.on_control_pairs == pytest.approx(first.mean, abs=1e-4)
    assert effect.controls == pytest.approx(first.controls, abs=1e-4)


def test_the_bar_counts_pairs(
    model: SteeredModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("steer.progress.SECONDS", 0)
    monkeypatch.setattr("steer.progress.tqdm", partial(tqdm, disable=False, miniters=0))
    caplog.set_level("INFO", "steer.progress")
    steps, many = [EditLayer(1, Add(VECTOR))], pairs(14)
    measure_effect(model, [Group(many[:9], steps), Group(many[9:], steps)], "here", controls=1)
    # Twice all of them, then a random vector on 6 of the first fold and on the 5 of the other.
    done = [line.split(" after ")[0] for line in caplog.messages]
    wanted = [f"measuring the effect: {n} of 39" for n in (9, 14, 23, 28, 34, 39)]
    assert list(dict.fromkeys(done))[1:] == wanted
