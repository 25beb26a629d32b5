"""Gates: rows and tokens that are steered are those that a slow loop steers, in any batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import slow_but
from tiny import full_logits, ids_of, steered, tiny_config
from torch import Tensor

from steer.engines.recipes import layout_of
from steer.likelihood import AnswerScorer
from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    Add,
    EditHeadInput,
    EditLayer,
    Gate,
    Intervention,
    SteeredModel,
    generate_batches,
)
from steer.models.interventions import describe, only_rows
from steer.models.tally import Tally
from steer.report import basic_report, render

PROMPTS = ids_of([4, 9, 2, 7, 30, 1, 5, 12])
DICE = torch.Generator().manual_seed(5)
VECTOR = 4 * torch.randn(16, generator=DICE)
TOWARDS = torch.randn(16, generator=DICE)
READ, EDITED, NEW = 1, 2, 6
PARAMS = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 9999}


@pytest.fixture(scope="module")
def tiny() -> SteeredModel:
    return steered(tiny_config("llama"))


# ---- the slow loop ------------------------------------------------------------------------------


def cosines_of(model: SteeredModel, ids: Sequence[int]) -> Tensor:
    """Each token's cosine at block READ, of a row read alone by a plain hook."""
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden

    full_logits(model, ids, {READ: keep})
    (hidden,) = seen
    return (hidden @ TOWARDS) / (hidden.norm(dim=-1) * TOWARDS.norm())


def slow(model: SteeredModel, prompt: list[int], threshold: float, by: str) -> list[int]:
    """Greedy tokens, the whole row read anew for each, steered where the gate says so."""
    opened = bool(cosines_of(model, prompt).mean() > threshold)
    ids = list(prompt)
    for _ in range(NEW):
        if by == "row":
            chosen = torch.full((len(ids),), opened)
        else:
            chosen = cosines_of(model, ids) > threshold
        edit = {EDITED: lambda h, c=chosen: h + c[:, None] * VECTOR}
        ids.append(int(full_logits(model, ids, edit)[-1].argmax()))
    return ids[len(prompt) :]


def middle(model: SteeredModel, by: str) -> float:
    """A threshold in the widest gap between scores around their median."""
    each = [cosines_of(model, p) for p in PROMPTS]
    scores = torch.stack([e.mean() for e in each]) if by == "row" else torch.cat(each)
    ordered = scores.sort().values
    gaps = ordered.diff()[len(ordered) // 3 : -len(ordered) // 3]
    place = int(gaps.argmax()) + len(ordered) // 3
    return float(ordered[place : place + 2].mean())


def gated(model: SteeredModel, by: str, **more: Any) -> EditLayer:
    return EditLayer(EDITED, Add(VECTOR), gate=Gate(READ, TOWARDS, middle(model, by), by), **more)


def answers(
    model: SteeredModel, steps: Sequence[Intervention], **more: Any
) -> dict[int, list[int]]:
    found = {}
    for rows, batch in generate_batches(model, PROMPTS, PARAMS, interventions=steps, **more):
        found |= {row: answer.new_ids for row, answer in zip(rows, batch, strict=True)}
    return found


@pytest.mark.parametrize("batch_size", slow_but([3], [1, 3, 8]))
@pytest.mark.parametrize("by", ["row", "token"])
def test_answers_are_those_of_the_slow_loop(tiny: SteeredModel, by: str, batch_size: int):
    step = gated(tiny, by)
    truth = {
        n: slow(tiny, prompt, step.gate.threshold, by)  # type: ignore[union-attr]
        for n, prompt in enumerate(PROMPTS)
    }
    never, always = (answers(tiny, steps) for steps in ([], [EditLayer(EDITED, Add(VECTOR))]))
    assert truth not in (never, always)
    assert answers(tiny, [step], batch_size=batch_size) == truth


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_rows_are_either_steered_or_bare(tiny: SteeredModel, batch_size: int):
    step = gated(tiny, "row", where=GENERATED)
    threshold = step.gate.threshold  # type: ignore[union-attr]
    opened = [bool(cosines_of(tiny, p).mean() > threshold) for p in PROMPTS]
    assert 0 < sum(opened) < len(opened)
    bare = answers(tiny, [], batch_size=batch_size)
    always = answers(tiny, [EditLayer(EDITED, Add(VECTOR), GENERATED)], batch_size=batch_size)
    found = answers(tiny, [step], batch_size=batch_size)
    assert found == {n: (always if opened[n] else bare)[n] for n in range(len(PROMPTS))}


def test_the_head_can_be_gated_too(tiny: SteeredModel):
    step = EditHeadInput(Add(VECTOR), gate=gated(tiny, "row").gate)
    always = answers(tiny, [EditHeadInput(Add(VECTOR))])
    bare, found = answers(tiny, []), answers(tiny, [step], batch_size=3)
    threshold = step.gate.threshold  # type: ignore[union-attr]
    opened = [bool(cosines_of(tiny, p).mean() > threshold) for p in PROMPTS]
    assert found == {n: (always if opened[n] else bare)[n] for n in range(len(PROMPTS))}


@pytest.mark.slow
def test_beams_of_a_row_share_its_gate(tiny: SteeredModel):
    tally: Tally = {}
    found = {}
    beams = {**PARAMS, "num_beams": 2}
    for steps in ([gated(tiny, "row")], [EditLayer(EDITED, Add(VECTOR))], []):
        given = {"interventions": steps, "tally": tally if not found else None}
        batches = generate_batches(tiny, PROMPTS, beams, **given)
        found[len(found)] = {
            row: a.new_ids for rows, batch in batches for row, a in zip(rows, batch, strict=True)
        }
    threshold = middle(tiny, "row")
    opened = [bool(cosines_of(tiny, p).mean() > threshold) for p in PROMPTS]
    assert found[0] == {n: found[1 if o else 2][n] for n, o in enumerate(opened)}
    assert tally[EDITED].summary()["gate_rows"] == [sum(opened), len(PROMPTS)]


# ---- answers that are given ---------------------------------------------------------------------


@pytest.mark.parametrize("by", ["row", "token"])
def test_scores_of_answers_are_those_of_the_slow_loop(tiny: SteeredModel, by: str):
    # All prompts begin alike, and lower blocks could be replayed: neither may reach the gate.
    start = ids_of([12], seed=3)[0]
    prompts, given = [start + p for p in PROMPTS], ids_of([3] * len(PROMPTS), seed=9)
    scores = [cosines_of(tiny, p) for p in prompts]
    each = torch.stack([s.mean() for s in scores]) if by == "row" else torch.cat(scores)
    threshold = float(each.sort().values[len(each) // 2 - 1 : len(each) // 2 + 1].mean())
    step = EditLayer(EDITED, Add(VECTOR), gate=Gate(READ, TOWARDS, threshold, by))
    scorer = AnswerScorer(tiny, prompts, given)
    scorer.log_probs([])
    for _ in range(2):
        found = scorer.log_probs([step])
        for n, (prompt, answer) in enumerate(zip(prompts, given, strict=True)):
            whole = [*prompt, *answer]
            opened = torch.full((len(whole),), bool(scores[n].mean() > threshold))
            chosen = opened if by == "row" else cosines_of(tiny, whole) > threshold
            logits = full_logits(tiny, whole, {EDITED: lambda h, c=chosen: h + c[:, None] * VECTOR})
            truth = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(
                1, torch.tensor(answer)[:, None]
            )
            assert torch.allclose(found[n], truth[:, 0], atol=1e-4)


# ---- counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", slow_but([3], [1, 3, 8]))
def test_rows_that_passed_are_counted_once(tiny: SteeredModel, batch_size: int):
    tally: Tally = {}
    step = gated(tiny, "row")
    on = [True, False] * 4
    answers(tiny, only_rows([step], on), batch_size=batch_size, tally=tally)
    threshold = step.gate.threshold  # type: ignore[union-attr]
    opened = [bool(cosines_of(tiny, p).mean() > threshold) for p in PROMPTS]
    counts = tally[EDITED].summary()
    asked = [o for o, steered in zip(opened, on, strict=True) if steered]
    assert counts["gate_rows"] == [sum(asked), len(asked)]
    passed = [len(p) for p, o, s in zip(PROMPTS, opened, on, strict=True) if o and s]
    assert counts["tokens"] == sum(passed) + (NEW - 1) * len(passed)
    assert "gate_tokens" not in counts


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_tokens_that_passed_are_counted(tiny: SteeredModel, batch_size: int):
    tally: Tally = {}
    step = gated(tiny, "token", where=FROM_PROMPT_END)
    found = answers(tiny, [step], batch_size=batch_size, tally=tally)
    threshold = step.gate.threshold  # type: ignore[union-attr]
    scores = [cosines_of(tiny, [*p, *found[n]])[len(p) - 1 : -1] for n, p in enumerate(PROMPTS)]
    passed = int((torch.cat(scores) > threshold).sum())
    counts = tally[EDITED].summary()
    assert counts["gate_tokens"] == [passed, NEW * len(PROMPTS)]
    assert counts["tokens"] == passed


def test_the_report_says_how_much_passed_and_a_closed_gate_is_no_error(tiny: SteeredModel):
    tally: Tally = {}
    closed = EditLayer(EDITED, Add(VECTOR), gate=Gate(READ, TOWARDS, 2.0))
    assert answers(tiny, [closed], tally=tally) == answers(tiny, [])
    report = basic_report(tally, [closed])
    assert report.layers[EDITED]["gate_rows"] == [0, len(PROMPTS)]
    lines = [str(part) for part in render(report).renderables]  # type: ignore[attr-defined]
    assert f"layer {EDITED}: the gate let 0 of {len(PROMPTS)} rows pass" in lines


# ---- what cannot be -----------------------------------------------------------------------------


def test_a_gate_behind_its_edit_is_refused():
    with pytest.raises(ValueError, match="decided too late for an edit of layer 1"):
        EditLayer(1, Add(VECTOR), gate=Gate(2, TOWARDS, 0.0))


def test_a_gate_that_is_none_is_refused():
    with pytest.raises(ValueError, match="by row or token, along one direction"):
        Gate(1, TOWARDS, 0.0, "layer")
    with pytest.raises(ValueError, match=r"got 'row' and \[1, 16\]"):
        Gate(1, TOWARDS[None], 0.0)


def test_a_gate_by_row_needs_the_whole_prompt(tiny: SteeredModel):
    step, ids = gated(tiny, "row"), torch.tensor([PROMPTS[1]])
    with tiny.steering([step]), pytest.raises(ValueError, match="prompt_lengths"):
        tiny.model(ids)
    lengths = torch.tensor([ids.shape[1] + 3])
    with tiny.steering([step], prompt_lengths=lengths), pytest.raises(ValueError, match="one pass"):
        tiny.model(ids)


def test_each_prompt_read_in_one_context_is_decided_anew(tiny: SteeredModel):
    step = gated(tiny, "row")
    decided = []
    with torch.inference_mode(), tiny.steering([step]) as decisions:
        for prompt in PROMPTS[:4]:
            decisions._now.prompt_lengths = torch.tensor([len(prompt)])
            tiny.model(torch.tensor([prompt]))
            decided.append(bool(decisions.rows[step.gate][0]))  # type: ignore[index]
    threshold = step.gate.threshold  # type: ignore[union-attr]
    assert decided == [bool(cosines_of(tiny, p).mean() > threshold) for p in PROMPTS[:4]]


def test_a_compiled_engine_refuses_gates(tiny: SteeredModel):
    with pytest.raises(ValueError, match="knows no gates: set engine: hf"):
        layout_of([[gated(tiny, "row")]])


def test_a_gate_is_part_of_what_decides_a_result(tiny: SteeredModel):
    one, other = gated(tiny, "row"), gated(tiny, "token")
    assert describe(one) != describe(other)
    assert describe(one) != describe(EditLayer(EDITED, Add(VECTOR)))
