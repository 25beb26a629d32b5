"""Interventions of single rows, put together: each row of a batch is edited as it is alone."""

import pytest
import torch
from torch import Tensor

from steer.models import (
    FROM_PROMPT_END,
    GENERATED,
    Add,
    AddKeepingNorm,
    EditHeadInput,
    EditLayer,
    EditPrompt,
    Intervention,
    LowRank,
    ProjectOut,
    SteeredModel,
    TokenMask,
)
from steer.models.interventions import take_rows
from steer.models.row_steering import join_rows
from steer.saes import SAE
from steer.saes.clamping import Clamp

DICE = torch.Generator().manual_seed(0)
V = torch.randn(8, 16, generator=DICE)
LEFT, RIGHT = torch.randn(2, 16, 3, generator=DICE)
IDS = torch.randint(0, 250, (6, 7), generator=DICE)
LENGTHS = torch.tensor([5, 3, 6, 4, 6, 2])


def logits(model: SteeredModel, rows: list[int], steps: list[Intervention]) -> Tensor:
    with torch.inference_mode(), model.steering(steps, prompt_lengths=LENGTHS[rows]):
        return model.model(IDS[rows]).logits


def clamped(values: float) -> Clamp:
    enc, dec = (torch.randn(shape, generator=DICE) for shape in ((16, 20), (20, 16)))
    sae = SAE(enc, torch.zeros(20), dec, torch.zeros(16))
    return Clamp(sae, [1, 4], torch.tensor([values, -values]))


HALF = V[6].half()
ONE = EditLayer(1, Add(V[0], 4.0))
MIXES = {
    "one recipe": [[ONE]] * 6,
    "strengths": [[EditLayer(1, Add(V[0], float(n)))] for n in range(6)],
    "vectors": [[EditLayer(1, Add(V[n], 3.0), GENERATED)] for n in range(6)],
    "places": [
        [EditLayer(n % 3, Add(V[n])), EditHeadInput(AddKeepingNorm(V[n]))] for n in range(6)
    ],
    "low rank": [[EditLayer(2, LowRank(LEFT, RIGHT, V[n, :3]))] for n in range(6)],
    "different": [
        [],
        [ONE, EditLayer(1, ProjectOut(V[1])), EditPrompt("Be brief.")],
        [EditLayer(1, ProjectOut(V[1], 0.5)), ONE],
        [EditLayer(1, LowRank(LEFT, RIGHT, V[3, :3]), FROM_PROMPT_END)],
        [EditLayer(1, Add(V[4]), TokenMask(torch.tensor([[True, False, True]]))), ONE],
        [EditLayer(1, AddKeepingNorm(HALF, 2.5), GENERATED), EditLayer(0, Add(HALF, 0.3))],
    ],
}


@pytest.mark.parametrize("name", MIXES)
def test_each_row_is_edited_as_it_is_alone(model: SteeredModel, name: str):
    mix = MIXES[name]
    together = logits(model, list(range(6)), join_rows(mix))
    plain = logits(model, list(range(6)), [])
    for row, own in enumerate(mix):
        expected = logits(model, [row], own)
        torch.testing.assert_close(together[row], expected[0], rtol=1e-4, atol=1e-3)
        assert own == [] or not torch.allclose(expected[0], plain[row], atol=1e-2) or row == 0


def test_rows_without_steering_are_left_bit_for_bit(model: SteeredModel):
    together = logits(model, list(range(6)), join_rows(MIXES["different"]))
    assert torch.equal(together[0], logits(model, list(range(6)), [])[0])


def test_what_cannot_be_stacked_is_done_once_for_each_edit_to_its_rows(model: SteeredModel):
    one, other = EditLayer(1, clamped(5.0)), EditLayer(1, clamped(9.0))
    mix = [[one], [other], [one, ONE], [], [ONE, other], [one]]
    joined = join_rows(mix)
    assert len(joined) == 5  # one, other and ONE first; then ONE, and other
    together = logits(model, list(range(6)), joined)
    for row, own in enumerate(mix):
        torch.testing.assert_close(
            together[row], logits(model, [row], own)[0], rtol=1e-4, atol=1e-3
        )


def test_what_rows_do_alike_is_done_once_and_not_stacked():
    (shared,) = join_rows([[ONE]] * 3)
    assert shared == ONE or (shared.edit is ONE.edit and shared.where == ONE.where)
    (stacked,) = join_rows([[EditLayer(1, Add(V[n]))] for n in range(3)])
    assert stacked.edit.vector.shape == (3, 16)


def test_it_is_the_inverse_of_taking_rows(model: SteeredModel):
    batch = [EditLayer(1, Add(V[:6], torch.arange(6.0)), [GENERATED, FROM_PROMPT_END] * 3), ONE]
    parts = [take_rows(batch, torch.tensor([row])) for row in range(6)]
    expected = logits(model, list(range(6)), batch)
    torch.testing.assert_close(logits(model, list(range(6)), join_rows(parts)), expected)
