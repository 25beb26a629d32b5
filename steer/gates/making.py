"""Condition vectors: directions that tell prompts apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.datasets import Row
from steer.gates.calibrating import calibrate_folder
from steer.gates.scores import prompts_of
from steer.judging import rows_digest
from steer.methods.probe import TrainProbe
from steer.models import ChatFormat, SteeredModel
from steer.models.facts import model_facts, template_hash
from steer.passages import Passage, passage_means
from steer.vectors import save_vectors

FEWEST = 4


def mean_difference(on: Tensor, off: Tensor) -> Tensor:
    """The mean of `on` [n, d] less that of `off`."""
    return on.double().mean(0) - off.double().mean(0)


def probe(on: Tensor, off: Tensor) -> Tensor:
    """The normal of the plane by which logistic regression parts the sides."""
    return TrainProbe().direction(on, off)


KINDS = {"mean": mean_difference, "probe": probe}


def make_detector(
    model: SteeredModel,
    chat: ChatFormat,
    on: Sequence[Row],
    off: Sequence[Row],
    folder: Path,
    *,
    layers: Sequence[int],
    kind: str = "probe",
    rate: float = 0.05,
) -> dict[str, dict[str, Any]]:
    """Write a direction for each of `layers`, calibrated as a detector, to `folder`.

    Every other row of each side, from the first on, makes the directions; the rest is held out to
    calibrate them.

    Args:
        model: Read unsteered.
        chat: How prompts are put.
        on: Inputs that are to be detected.
        off: Inputs that are not.
        folder: Of the vectors.
        layers: Decoder blocks, counted from 0.
        kind: `mean`, the difference of the sides' means, or `probe`, logistic regression; both of
            each prompt's mean over its tokens of the activation at length 1.
        rate: False-positive rate that is wanted.

    Returns:
        By vector's name what calibrating found.

    Raises:
        ValueError: Fewer than 4 inputs on a side, or layers that the model does not have.
    """
    if min(len(on), len(off)) < FEWEST:
        raise ValueError(
            f"a detector needs {FEWEST} inputs or more on each side: got {len(on)} on and "
            f"{len(off)} off"
        )
    model.check_layers(layers)
    sides = [prompts_of(model, chat, rows) for rows in (on, off)]
    means = [_unit_means(model, side[::2], layers) for side in sides]
    vectors = {f"layer_{n}": KINDS[kind](means[0][n], means[1][n]).float() for n in layers}
    about = {
        "method": f"detector: {kind}",
        "model": model_facts(model),
        "chat_template_sha256": template_hash(model),
        "tokens_read": "mean over the prompt, of activations at length 1",
    }
    save_vectors(folder, vectors, {f"layer_{n}": {"layer": n, **about} for n in layers})
    data = {"on_sha256": rows_digest(on), "off_sha256": rows_digest(off)}
    held_out = [side[1::2] for side in sides]
    # Others in the folder may have been made of these very rows.
    given = {"about": data, "names": vectors.keys()}
    return calibrate_folder(model, folder, held_out[0], held_out[1], rate, **given)


def _unit_means(
    model: SteeredModel, passages: Sequence[Passage], layers: Sequence[int]
) -> dict[int, Tensor]:
    """Layer -> [passages, d_model], means over tokens of activations at length 1."""
    found = {n: torch.empty(len(passages), model.d_model) for n in layers}
    for batch in passage_means(model, passages, layers, encoders=dict.fromkeys(layers, _unit)):
        for n, values in batch.encoded.items():
            found[n][batch.rows] = values.float().cpu()
    return found


def _unit(tokens: Tensor) -> Tensor:
    return torch.nn.functional.normalize(tokens.float(), dim=-1)
