"""What a gate keeps of the steering where it is wanted, and of the damage elsewhere.

python benchmarks/gates.py

CAA for sentiment steers reviews; a detector of review questions lets it act, on data that made
neither. Measured: effect on held-out pairs of reviews, and KL(unsteered || steered) of next-token
predictions on prompts about other things, with and without the gate, by row and by token.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from steer.datasets import DatasetLoader
from steer.effect import Group, divergence, measure_effect
from steer.gates import make_detector
from steer.generator import BaseVectorGenerator
from steer.methods.activation_addition import AddVectors
from steer.models import ChatFormat, Intervention, SteeredModel

LAYERS, LAYER, MULTIPLIER = [9, 12, 15], 15, 2.0
CHAT = ChatFormat(use_chat_template=True)


def rows_of(name: str, split: str, field: str) -> list[dict[str, str]]:
    """Inputs out of a field of a data set that ships."""
    return [{"input": row[field]} for row in DatasetLoader(source="file").load_file(name, split)]


def generated() -> tuple[SteeredModel, Any]:
    """The embedded model, and the vector of the demo."""
    cfg = {
        "device": "cpu",
        "dtype": "float32",
        "use_chat_template": True,
        "layers": [LAYER],
        "steer_train_dataset": ["sentiment"],
        "methods": ["caa"],
        "save_vectors": False,
    }
    generator = BaseVectorGenerator(cfg)
    return generator.model, generator.generate_vectors()["sentiment"]["caa"]


def measured(model: SteeredModel, steps: Sequence[Intervention], others: Sequence[str]) -> Any:
    """Effect on held-out pairs with its interval, and KL on other prompts."""
    rows = DatasetLoader(source="file").load_file("sentiment", "valid")
    effect = measure_effect(model, [Group.of(model, rows, CHAT, steps)], "held-out", controls=0)
    found = [round(x, 2) for x in (effect.mean, effect.low, effect.high)]
    return {"effect": found, "kl_on_others": round(divergence(model, others, steps), 4)}


def main() -> None:
    """Print the measurement as JSON."""
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--quick", action="store_true", help="a detector of one layer only")
    given.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = given.parse_args()
    layers = LAYERS[-1:] if options.quick else LAYERS
    model, vectors = generated()
    on = rows_of("sentiment", "train", "question")
    off = rows_of("refusal", "train", "question") + rows_of("dogs", "generation", "input")
    # Of neither the detector nor its calibration.
    held_out = rows_of("refusal", "valid", "question") + rows_of("dogs", "valid", "question")
    others = [CHAT.text(model.tokenizer, row["input"]) for row in held_out]
    with tempfile.TemporaryDirectory() as scratch:
        found = make_detector(model, CHAT, on, off, Path(scratch), layers=layers, rate=0.05)
        settings: dict[str, dict[str, Any]] = {
            "no gate": {},
            "gate by row": {"gate": scratch},
            "gate by token": {"gate": scratch, "gate_by": "token"},
        }
        result: dict[str, Any] = {
            name: measured(
                model,
                AddVectors(layers=[LAYER], multipliers=[MULTIPLIER], **more).interventions(
                    model, vectors
                ),
                others,
            )
            for name, more in settings.items()
        }
    aurocs = {
        name: {by: one[by]["auroc"] for by in ("row", "token")} for name, one in found.items()
    }
    text = json.dumps({"auroc": aurocs, **result}, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
