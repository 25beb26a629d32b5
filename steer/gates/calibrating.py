"""How well a vector tells texts apart, and above which score a gate should open."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steer.gates.scores import token_scores
from steer.models import SteeredModel
from steer.models.facts import model_facts
from steer.models.gates import ROW, TOKEN
from steer.passages import Passage
from steer.vectors import load_vectors, read_metadata, save_vectors, vector_names

SCORE = "cosine of the block's output and the vector; of a row the mean over its tokens"


def threshold_at(negatives: Tensor, rate: float) -> float:
    """The lowest threshold that at most a share `rate` of `negatives` [n] is above.

    Raises:
        ValueError: No negatives, or a rate that is not from 0 to below 1.
    """
    if not len(negatives) or not 0 <= rate < 1:
        raise ValueError(
            f"a threshold needs negatives and a false-positive rate from 0 to below 1: got "
            f"{len(negatives)} and {rate}"
        )
    return float(negatives.sort(descending=True).values[int(rate * len(negatives))])


def detector_of(
    on: Sequence[Tensor], off: Sequence[Tensor], rate: float, read: str = "prompts"
) -> dict[str, Any]:
    """What `metadata.json` says of a vector as a detector.

    Args:
        on: Token scores of texts that are to be detected, none of which made the vector.
        off: Of texts that are not.
        rate: False-positive rate that is wanted.
        read: What the texts are: `prompts` or `answers`.

    Returns:
        For rows and for tokens: area under the ROC curve, threshold, and on these texts the rates
        of true and false positives; and the `quality` by which layers are chosen, the area and,
        where that is alike, the distance of the means in standard deviations (d').
    """
    whole, others = (torch.stack([one.mean() for one in side]) for side in (on, off))
    tokens, other_tokens = (torch.cat(list(side)) for side in (on, off))
    return {
        "score": SCORE,
        "read": read,
        "wanted_false_positive_rate": rate,
        ROW: _rates(whole, others, rate),
        TOKEN: _rates(tokens, other_tokens, rate),
    }


def _rates(on: Tensor, off: Tensor, rate: float) -> dict[str, Any]:
    # scikit-learn takes seconds to import.
    from sklearn.metrics import roc_auc_score

    labels = [1] * len(on) + [0] * len(off)
    area = float(roc_auc_score(labels, torch.cat([on, off]).double().numpy()))
    threshold = threshold_at(off, rate)
    spread = ((on.var(correction=0) + off.var(correction=0)) / 2).sqrt().clamp_min(1e-12)
    return {
        "auroc": area,
        "threshold": threshold,
        "true_positive_rate": float((on > threshold).double().mean()),
        "false_positive_rate": float((off > threshold).double().mean()),
        "on": len(on),
        "off": len(off),
        "quality": [round(area, 4), float((on.mean() - off.mean()) / spread)],
    }


def calibrate_folder(
    model: SteeredModel,
    folder: Path,
    on: Sequence[Passage],
    off: Sequence[Passage],
    rate: float,
    *,
    read: str = "prompts",
    about: Mapping[str, Any] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Write into the metadata of vectors `layer_<n>` of `folder` how well they detect.

    Args:
        model: That the vectors are for.
        folder: Of vectors with metadata.
        on: Texts that are to be detected, none of which made the vectors.
        off: Texts that are not.
        rate: As for `detector_of`.
        read: As there.
        about: Put into each detector's entry besides, such as where the texts come from.
        names: Only of these vectors; of every one where None.

    Returns:
        By name what was found.

    Raises:
        ValueError: No texts on a side, no vectors with a layer, or such of another model.
    """
    if not on or not off:
        raise ValueError(f"texts of both sides are needed: got {len(on)} on and {len(off)} off")
    entries: dict[str, Any] = (read_metadata(folder) or {}).get("vectors", {})
    layers = {
        name: entry["layer"]
        for name, entry in entries.items()
        if "layer" in entry and "tensors" not in entry and (names is None or name in names)
    }
    if not layers:
        raise ValueError(
            f"{folder} has no vector whose metadata names its layer; there are: "
            f"{', '.join(vector_names(folder)) or 'none'}"
        )
    vectors = load_vectors(folder, list(layers), model=model_facts(model))
    found = {}
    for name, layer in layers.items():
        one = {layer: vectors[name]}
        scores = [token_scores(model, side, one)[layer] for side in (on, off)]
        found[name] = {**detector_of(scores[0], scores[1], rate, read), **(about or {})}
    save_vectors(folder, vectors, {n: {**entries[n], "detector": found[n]} for n in found})
    return found
