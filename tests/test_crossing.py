"""What vectors do to each other, in numbers worked by hand."""

import pytest
import torch

from steer.doctor.crossing import (
    along,
    budget_at,
    change_of,
    cosines_at,
    predicted,
    suggested_order,
)
from steer.models import Add, AddKeepingNorm, EditLayer, EditPrompt, LowRank, ProjectOut

X, Y = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])


def test_what_a_method_adds_is_summed_by_layer_and_nothing_else_counts():
    steps = [
        EditLayer(1, Add(X, 2.0)),
        EditLayer(1, AddKeepingNorm(Y, -1.0)),
        EditLayer(2, Add(Y, 0.5)),
        EditLayer(2, ProjectOut(X)),
        EditLayer(3, LowRank(X[:, None], X[:, None], torch.ones(1))),
        EditPrompt("Be brief."),
    ]
    found = change_of(steps)
    assert {layer: change.tolist() for layer, change in found.items()} == {
        1: [6.0, -4.0],
        2: [0.0, 2.0],
    }


def test_cosines_are_of_what_is_added_signs_included():
    diagonal = torch.tensor([1.0, 1.0])
    found = cosines_at({"a": {1: X, 2: X}, "b": {1: diagonal}, "c": {1: -2 * X, 2: Y}})
    half = 0.5**0.5
    assert found[1] == pytest.approx({("a", "b"): half, ("a", "c"): -1, ("b", "c"): -half})
    assert found[2] == {("a", "c"): pytest.approx(0)}
    assert cosines_at({"a": {1: X}, "b": {2: X}}) == {}


def test_the_budget_is_the_sum_of_norms_and_the_norm_of_the_sum():
    # 3 and 4 at right angles are 7 in all, and 5 together; of a residual of 10.
    found = budget_at({"a": {1: X}, "b": {1: Y, 2: Y}}, {1: 10.0, 2: 8.0, 3: 1.0})
    assert found == {1: (pytest.approx(0.7), pytest.approx(0.5)), 2: (0.5, 0.5)}


def test_an_effect_is_foreseen_in_proportion_to_what_lies_along_the_pairs_difference():
    contrast = {1: torch.tensor([1.0, 1.0]), 2: torch.tensor([0.0, 2.0])}
    assert along({1: X, 2: Y, 5: X}, contrast) == 3 + 8
    # The own vector goes 3 along it and does 6 nats; the other goes 4 + 8 = 12, four times as far.
    assert predicted(6.0, {1: Y, 2: Y}, {1: X}, contrast) == 24.0
    assert predicted(6.0, {1: -X}, {1: X}, contrast) == -6.0
    assert predicted(6.0, {1: X}, {3: X}, contrast) is None


def test_what_is_removed_comes_first_and_what_keeps_the_length_last():
    steps = {
        "keep": [EditLayer(1, AddKeepingNorm(X))],
        "add": [EditLayer(1, Add(X))],
        "take": [EditLayer(1, ProjectOut(X))],
        "also": [EditLayer(1, Add(Y))],
    }
    assert suggested_order(steps) == ["take", "add", "also", "keep"]
