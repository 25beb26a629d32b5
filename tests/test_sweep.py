"""Many steerings of the same answers, against one full forward pass a row and steering."""

import pytest
import torch
from conftest import slow_but
from test_likelihood import ANSWERS, OTHER, VECTOR, prompts, slow_row
from tiny import adding, full_logits, hooks_on, ids_of

from steer.effect import divergence
from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    PROMPT,
    Add,
    EditLayer,
    EditPrompt,
    Gate,
    ProjectOut,
    SteeredModel,
)
from steer.models.batching import PASS_TOKENS
from steer.search.batches import SharedPrompts
from steer.search.passes import Sweep, kl_sum, log_likelihood

# Which of `prompts` each answer is to: one each, or several with the same.
ONE_EACH, SEVERAL = [0, 1, 2, 3, 4], [1, 3, 1, 1, 3]
PROMPTS = pytest.mark.parametrize("order", [ONE_EACH, SEVERAL], ids=["one each", "same prompts"])
SHARED = pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared beginning"])
STRENGTHS = [(2, 1.5), (1, -1.0), (0, 0.5), (1, 2.0), (2, 0.0), (1, 0.25)]


def settings():
    return [[EditLayer(layer, Add(VECTOR, strength))] for layer, strength in STRENGTHS]


def expected(model: SteeredModel, asked: list[list[int]]):
    rows = []
    for layer, strength in [(0, 0.0), *STRENGTHS]:
        edits = {layer: lambda hidden, s=strength: hidden + s * VECTOR}
        pairs = zip(asked, ANSWERS, strict=True)
        rows.append([float(slow_row(model, p, a, edits).sum()) for p, a in pairs])
    return torch.tensor(rows)


@SHARED
@PROMPTS
@pytest.mark.parametrize("batch_size", slow_but([2], ["auto", 2, 12]))
def test_each_steering_scores_as_in_the_slow_loop(
    every: SteeredModel, shared: int, order: list[int], batch_size: int | str
):
    asked = [prompts(shared)[n] for n in order]
    sweep = Sweep(every, asked, ANSWERS, batch_size)
    narrow = getattr(every.model.config, "sliding_window", None)
    assert (sweep.kind is SharedPrompts) == (order is SEVERAL and not narrow)
    found = sweep.run(settings(), log_likelihood)
    torch.testing.assert_close(found, expected(every, asked), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@SHARED
@PROMPTS
def test_steerings_share_passes_as_far_as_there_is_room(
    model: SteeredModel, shared: int, order: list[int], monkeypatch: pytest.MonkeyPatch
):
    asked = [prompts(shared)[n] for n in order]
    whole = Sweep(model, asked, ANSWERS).run(settings(), log_likelihood)
    monkeypatch.setitem(PASS_TOKENS, "cpu", 1)
    single = Sweep(model, asked, ANSWERS).run(settings(), log_likelihood)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-3)


@SHARED
@PROMPTS
def test_positions_are_counted_from_the_prompts_end(
    model: SteeredModel, shared: int, order: list[int]
):
    asked = [prompts(shared)[n] for n in order]
    places = [
        (PROMPT, lambda token: token < 0),
        (FROM_PROMPT_END, lambda token: token >= -1),
        (GENERATED, lambda token: token >= 0),
    ]
    swept = [[EditLayer(1, Add(VECTOR), where), EditLayer(2, Add(OTHER))] for where, _ in places]
    found = Sweep(model, asked, ANSWERS).run(swept, log_likelihood)
    for row, (_, chosen) in zip(found[1:], places, strict=True):
        for value, prompt, answer in zip(row, asked, ANSWERS, strict=True):
            length = len(prompt) + len(answer)
            columns = [n for n in range(length) if chosen(n - len(prompt))]
            edits = {1: adding(VECTOR, columns), 2: lambda hidden: hidden + OTHER}
            slow = slow_row(model, prompt, answer, edits).sum()
            torch.testing.assert_close(value, slow, rtol=1e-4, atol=1e-3)


def test_other_edits_and_several_layers_are_swept_too(model: SteeredModel):
    def out(hidden: torch.Tensor) -> torch.Tensor:
        unit = OTHER / OTHER.norm()
        return hidden - (hidden @ unit)[:, None] * unit

    asked = prompts(0)
    swept = [[EditLayer(0, ProjectOut(OTHER)), EditLayer(2, Add(VECTOR))], [], settings()[0]]
    found = Sweep(model, asked, ANSWERS).run(swept, log_likelihood)
    pairs = list(zip(asked, ANSWERS, strict=True))
    both = {0: out, 2: lambda hidden: hidden + VECTOR}
    slow = [[float(slow_row(model, p, a, edits).sum()) for p, a in pairs] for edits in (both, {})]
    torch.testing.assert_close(found[1:3], torch.tensor(slow), rtol=1e-4, atol=1e-3)
    assert found[2].equal(found[0])


def test_the_divergence_is_that_of_the_slow_loop_and_of_the_report(model: SteeredModel):
    texts = ["hello you", "why", "not so long", "the sixth"]
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    sweep = Sweep(model, [row[:1] for row in rows], [row[1:] for row in rows])
    found = sweep.run(settings(), kl_sum).sum(1) / sum(map(len, rows))
    reported = [divergence(model, texts, setting) for setting in [[], *settings()]]
    torch.testing.assert_close(found, torch.tensor(reported), rtol=1e-3, atol=1e-5)
    assert found[0] == 0
    unit = OTHER / OTHER.norm()
    edits = {
        0: lambda hidden: hidden - (hidden @ unit)[:, None] * unit,
        2: lambda hidden: hidden + VECTOR,
    }
    both = [EditLayer(0, ProjectOut(OTHER)), EditLayer(2, Add(VECTOR))]
    total = 0.0
    for row in rows:
        plain, other = (full_logits(model, row, e).log_softmax(-1) for e in ({}, edits))
        total += float((plain.exp() * (plain - other)).sum())
    assert sweep.run([both], kl_sum).sum().item() == pytest.approx(total, rel=1e-3)


def test_the_divergence_is_the_same_where_prompts_are_read_once(model: SteeredModel):
    asked = [prompts(10)[n] for n in SEVERAL]
    together = Sweep(model, asked, ANSWERS).run(settings(), kl_sum)
    for number, (prompt, answer) in enumerate(zip(asked, ANSWERS, strict=True)):
        alone = Sweep(model, [prompt], [answer]).run(settings(), kl_sum)
        torch.testing.assert_close(together[:, number : number + 1], alone, rtol=1e-3, atol=1e-4)


def test_each_block_reads_what_it_must_and_no_more(model: SteeredModel):
    calls: list[int] = []
    originals = [block.forward for block in model.blocks]
    for number, block in enumerate(model.blocks):

        def counting(*args: object, number: int = number, **more: object) -> object:
            calls.append(number)
            return originals[number](*args, **more)

        block.__dict__["forward"] = counting
    before = hooks_on(model.model)
    Sweep(model, prompts(0), ANSWERS, 5).run(settings(), log_likelihood)
    # Unsteered; from block 0 on; from block 1 on, thrice; from block 2 on.
    assert calls == [0, 1, 2, 1, 2, 2, 2, 2]
    assert hooks_on(model.model) == before


def test_what_cannot_be_swept_is_refused(model: SteeredModel):
    sweep = Sweep(model, prompts(0), ANSWERS)
    with pytest.raises(ValueError, match="steering prompts change the text"):
        sweep.run([[EditPrompt("Be kind.")]], log_likelihood)
    gate = Gate(0, VECTOR, 0.0, "token")
    with pytest.raises(ValueError, match="a sweep steers every text: it knows no gates"):
        sweep.run([[EditLayer(1, Add(VECTOR), gate=gate)]], log_likelihood)
    with pytest.raises(ValueError, match="steering is given for 5 rows, there are 1"):
        sweep.run([[EditLayer(1, Add(VECTOR.expand(5, -1)))]], log_likelihood)


def test_nothing_to_sweep_gives_the_unsteered_figures(model: SteeredModel):
    assert Sweep(model, prompts(0), ANSWERS).run([], log_likelihood).shape == (1, 5)
    one = Sweep(model, ids_of([3]), ids_of([2], 1)).run([], log_likelihood)
    row = ids_of([3])[0] + ids_of([2], 1)[0]
    logs = full_logits(model, row).log_softmax(-1)
    assert float(one) == pytest.approx(float(logs[2, row[3]] + logs[3, row[4]]), abs=1e-4)
