"""Means of activations, against one text at a time and plain torch hooks."""

from collections.abc import Sequence

import pytest
import torch
from tiny import full_logits, ids_of
from torch import Tensor

from steer import passages as reading
from steer.activations import Contrast, contrast
from steer.models import Add, EditLayer, SteeredModel, prefix
from steer.passages import Passage, passage_means

LAYERS = [2, 0]


def passages(count: int, seed: int, shared: int = 0) -> list[Passage]:
    """Texts of mixed lengths, of which a middle part is read; all begin with `shared` tokens."""
    lengths = [3 + (5 * n + seed) % 11 for n in range(count)]
    start = ids_of([shared], seed=99)[0]
    rows = ids_of(lengths, seed)
    return [
        Passage(start + row, shared + 1 + n % 2, shared + len(row) - n % 2)
        for n, row in enumerate(rows)
    ]


def slow_mean(
    model: SteeredModel, passage: Passage, layer: int, edits: dict | None = None
) -> Tensor:
    seen: list[Tensor] = []

    def note(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden

    full_logits(model, passage.ids, {**(edits or {}), layer: note})
    return seen[0][passage.start : passage.stop].mean(dim=0)


def slow(
    model: SteeredModel, wanted: Sequence[Passage], shunned: Sequence[Passage], layer: int
) -> list[Tensor]:
    """The difference of each pair."""
    pairs = zip(wanted, shunned, strict=True)
    return [slow_mean(model, w, layer) - slow_mean(model, s, layer) for w, s in pairs]


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared beginning"])
@pytest.mark.parametrize("batch_size", ["auto", 1, 4])
def test_the_mean_difference_is_that_of_the_slow_loop(
    model: SteeredModel, shared: int, batch_size: int | str
):
    wanted, shunned = passages(7, 0, shared), passages(7, 1, shared)
    found = contrast(model, wanted, shunned, LAYERS, batch_size=batch_size)
    assert found.counts.tolist() == [2, 2, 1, 1, 1]
    for layer in LAYERS:
        expected = torch.stack(slow(model, wanted, shunned, layer)).mean(dim=0)
        torch.testing.assert_close(found.means()[layer], expected)


@pytest.mark.parametrize("shared", [0, 10], ids=["nothing shared", "shared beginning"])
def test_so_it_is_on_every_architecture(every: SteeredModel, shared: int):
    wanted, shunned = passages(3, 0, shared), passages(3, 1, shared)
    found = contrast(every, wanted, shunned, LAYERS).means()
    for layer in LAYERS:
        expected = torch.stack(slow(every, wanted, shunned, layer)).mean(dim=0)
        torch.testing.assert_close(found[layer], expected)


def test_what_is_shared_is_read_once(model: SteeredModel):
    columns: list[tuple[int, ...]] = []
    hook = model.blocks[0].register_forward_hook(lambda _m, _a, h: columns.append(tuple(h.shape)))
    texts = passages(4, 0, 10)
    contrast(model, texts, texts[::-1], LAYERS)
    hook.remove()
    longest = max(passage.stop for passage in texts) - 10
    assert prefix.shared_length([p.ids[: p.start] for p in texts]) == 10 == columns[0][1]
    assert columns[1:] == [(8, longest, 16)]


def test_all_layers_are_read_in_one_pass_that_stops_behind_the_deepest(model: SteeredModel):
    calls: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, n=n: calls.append(n))
        for n, block in enumerate(model.blocks)
    ]
    texts = passages(4, 0)
    contrast(model, texts, texts, [1, 0])
    for hook in hooks:
        hook.remove()
    assert calls == [0, 1]


@pytest.mark.slow
def test_a_fold_left_out_gives_what_the_other_rows_give(model: SteeredModel):
    wanted, shunned = passages(8, 0), passages(8, 1)
    whole = contrast(model, wanted, shunned, [1], folds=3)
    differences = slow(model, wanted, shunned, 1)
    for fold in range(3):
        rest = [n for n in range(8) if n % 3 != fold]
        expected = torch.stack([differences[n] for n in rest]).mean(dim=0)
        torch.testing.assert_close(whole.means(without_fold=fold)[1], expected)


def test_there_are_no_more_folds_than_pairs(model: SteeredModel):
    found = contrast(model, passages(2, 0), passages(2, 1), [1])
    assert found.counts.tolist() == [1, 1]


def test_sums_by_fold_give_the_means_by_hand():
    sums = {0: torch.tensor([[2.0, 0.0], [4.0, 3.0]])}
    found = Contrast(sums, torch.tensor([2.0, 1.0]), {})
    assert found.means()[0].tolist() == [2.0, 1.0]
    assert found.means(without_fold=0)[0].tolist() == [4.0, 3.0]
    assert found.means(without_fold=1)[0].tolist() == [1.0, 0.0]


def test_a_layer_named_twice_counts_once(model: SteeredModel):
    wanted, shunned = passages(3, 0), passages(3, 1)
    once, twice = (contrast(model, wanted, shunned, layers) for layers in ([1], [1, 1]))
    torch.testing.assert_close(twice.means()[1], once.means()[1], rtol=0, atol=0)


def test_what_steering_holds_open_is_read(model: SteeredModel):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(1))
    wanted, shunned = passages(3, 0, 10), passages(3, 1, 10)
    model.steer("caa", [EditLayer(0, Add(vector))])
    plain = contrast(model, wanted, shunned, [2]).means()[2]
    with model.steering():
        steered = contrast(model, wanted, shunned, [2]).means()[2]
    edits = {0: lambda hidden: hidden + vector}
    expected = [
        slow_mean(model, w, 2, edits) - slow_mean(model, s, 2, edits)
        for w, s in zip(wanted, shunned, strict=True)
    ]
    torch.testing.assert_close(steered, torch.stack(expected).mean(dim=0))
    assert not torch.allclose(steered, plain)


def test_the_usual_norm_leaves_sinks_out():
    norms = torch.tensor([[1.0, 3.0, 2.0, 80.0, torch.nan], [5.0, torch.nan, 4.0, 4.0, 4.0]])
    assert reading._usual_norm(norms).tolist() == [2.0, 4.0]


def test_residual_norms_are_the_median_of_what_was_read(model: SteeredModel):
    texts = passages(5, 0, 10)
    found = contrast(model, texts, texts, [1]).residual_norms[1]
    medians = []
    for text in texts:
        seen: list[Tensor] = []
        full_logits(model, text.ids, {1: lambda hidden, seen=seen: seen.append(hidden) or hidden})
        medians.append(seen[0][text.start : text.stop].norm(dim=-1).median())
    assert found == pytest.approx(float(torch.stack(medians).median()), rel=1e-4)


def test_a_sink_among_what_is_read_does_not_move_the_residual_norm(model: SteeredModel):
    (text,) = ids_of([12])
    passage = Passage(text, 0, 12)

    def huge_first(hidden: Tensor) -> Tensor:
        return torch.cat([hidden[:, :1] * 80, hidden[:, 1:]], dim=1)

    plain = contrast(model, [passage], [passage], [1]).residual_norms[1]
    hook = model.blocks[1].register_forward_hook(lambda _m, _a, hidden: huge_first(hidden))
    with_sink = contrast(model, [passage], [passage], [1]).residual_norms[1]
    hook.remove()
    assert with_sink == pytest.approx(plain, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_taken_in_float32(model: SteeredModel, dtype: torch.dtype):
    half = SteeredModel(model.model.to(dtype), model.tokenizer)
    ((rows, means, norms, _),) = passage_means(half, passages(3, 0), [1])
    assert means[1].dtype == norms[1].dtype == torch.float32
    assert (len(rows), means[1].shape) == (3, (3, 16))


def test_nothing_is_kept_for_a_gradient(model: SteeredModel):
    found = contrast(model, passages(2, 0), passages(2, 1), [1])
    assert not found.means()[1].requires_grad
    assert not found.means()[1].is_inference()
