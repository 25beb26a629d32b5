"""Scores of texts: cosines of their tokens to directions, in the same passes for all layers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from steer.datasets import Row, input_of
from steer.models import ChatFormat, SteeredModel
from steer.models.batching import padded, run_passes
from steer.models.gates import cosines
from steer.passages import Passage


def prompts_of(model: SteeredModel, chat: ChatFormat, rows: Sequence[Row]) -> list[Passage]:
    """Inputs as they are put before the model, to be read whole.

    Raises:
        ValueError: A row without an input.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        ids = chat.encode(model.tokenizer, chat.text(model.tokenizer, input_of(row, number)))
        found.append(Passage(ids or [model.first_token], 0, max(len(ids), 1)))
    return found


@torch.inference_mode()
def token_scores(
    model: SteeredModel,
    passages: Sequence[Passage],
    directions: Mapping[int, Tensor],
    batch_size: int | str = "auto",
) -> dict[int, list[Tensor]]:
    """Layer -> for each passage the cosines [tokens] of what is read of it.

    Args:
        model: Read unsteered.
        passages: One or more.
        directions: Layer -> [d_model].
        batch_size: Passages in a pass; `auto` suits the device.
    """
    found: dict[int, list[Tensor]] = {n: [torch.empty(0)] * len(passages) for n in directions}

    def run(rows: list[int]) -> dict[int, Tensor]:
        ids = [passages[row].ids[: passages[row].stop] for row in rows]
        # Behind a passage's last token nothing can change it: no mask is needed.
        columns, _ = padded(ids, ids[0][-1], "right", model.device)
        hidden = model.read({"input_ids": columns}, list(directions))
        return {n: cosines(hidden[n], direction).cpu() for n, direction in directions.items()}

    lengths = [passage.stop for passage in passages]
    for rows, scores in run_passes(lengths, batch_size, model.device, run):
        for n, batch in scores.items():
            for row, one in zip(rows, batch, strict=True):
                found[n][row] = one[passages[row].start : passages[row].stop].clone()
    return found
