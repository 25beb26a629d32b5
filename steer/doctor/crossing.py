"""What several vectors do to each other: cosines, norms, and effects on each other's pairs."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor

from steer.models import Add, AddKeepingNorm, EditLayer, Intervention, ProjectOut
from steer.vectors.merging import cosines

# Layer -> [d_model]: what is added there in all.
Change = Mapping[int, Tensor]


def change_of(steps: Iterable[Intervention]) -> Change:
    """What a method adds to each layer, at its strength; float32, on the CPU.

    What depends on the activation (ablation, clamping) or on the row is left out.
    """
    found: dict[int, Tensor] = {}
    for step in steps:
        if isinstance(step, EditLayer) and isinstance(step.edit, Add | AddKeepingNorm):
            change = step.edit.change().float().cpu()
            if change.ndim == 1:
                found[step.layer] = found.get(step.layer, torch.zeros_like(change)) + change
    return found


def cosines_at(changes: Mapping[str, Change]) -> dict[int, dict[tuple[str, str], float]]:
    """Layer -> pair of methods -> cosine of what they add there; signs of strengths count."""
    found: dict[int, dict[tuple[str, str], float]] = {}
    for layer in sorted({n for change in changes.values() for n in change}):
        here = {key: change[layer] for key, change in changes.items() if layer in change}
        table = cosines(list(here.values()))
        pairs = combinations(enumerate(here), 2)
        found[layer] = {(one, other): table[i][j] for (i, one), (j, other) in pairs}
    return {layer: pairs for layer, pairs in found.items() if pairs}


def budget_at(
    changes: Mapping[str, Change], residual: Mapping[int, float]
) -> dict[int, tuple[float, float]]:
    """Layer -> (sum of the norms that are added, norm of their sum), as shares of the residual.

    Args:
        changes: Method -> what it adds.
        residual: Layer -> usual norm of its output.
    """
    found = {}
    for layer, norm in residual.items():
        here = [change[layer] for change in changes.values() if layer in change]
        if here:
            total = sum(float(one.norm()) for one in here)
            found[layer] = (total / norm, float(torch.stack(here).sum(0).norm()) / norm)
    return found


def along(change: Change, contrast: Change) -> float:
    """How far `change` goes along what the sides of pairs differ in, summed over layers."""
    return sum(float(one @ contrast[n].cpu().float()) for n, one in change.items() if n in contrast)


def predicted(own: float, change: Change, own_change: Change, contrast: Change) -> float | None:
    """The effect of `change` on pairs, in proportion to that of the pairs' own vector.

    Linear: an effect is taken to be as large as what is added along the pairs' mean difference.

    Args:
        own: Effect of `own_change` on the pairs.
        change: Of the other vector.
        own_change: Of the pairs' own.
        contrast: Layer -> mean difference of activations between the pairs' sides.

    Returns:
        None where the own vector has nothing along it.
    """
    there = along(own_change, contrast)
    return own * along(change, contrast) / there if there else None


def suggested_order(steps: Mapping[str, Sequence[Intervention]]) -> list[str]:
    """Methods in the order in which to list them; where nothing says otherwise, as they are.

    Of edits of one block: what is removed first, which else takes part of what was added; then what
    is added; then what keeps the length, which only the last edit can.
    """

    def rank(key: str) -> int:
        kinds = {type(step.edit) for step in steps[key] if isinstance(step, EditLayer)}
        return 0 if ProjectOut in kinds else 1 + (AddKeepingNorm in kinds)

    return sorted(steps, key=rank)
