"""What STA costs over caa on the same pairs.

    python benchmarks/sta.py
    python benchmarks/sta.py --shape llama3-8b --pairs 256

In one run: (caa) the mean differences of a layer; (sta) those, and the vector of STA out of the
same passes. `--shape embedded` trains both methods whole, from rows to vectors, the SAE read from
disk included; other shapes have random weights, and features as many times as wide as the model.
"""

from collections.abc import Callable

import torch
from _measure import interleaved, load, made_up_pairs, parser, ratio, report

from steer.activations import contrast
from steer.datasets import DatasetLoader
from steer.methods.caa import TrainCAA
from steer.methods.sta import TrainSTA
from steer.models import SteeredModel
from steer.passages import Passage
from steer.saes import SAE

LAYER = 15  # of the SAE that comes with the project
WIDER = 8


def trainings(model: SteeredModel, pairs: int) -> dict[str, Callable[[], object]]:
    """Both methods on the shipped sentiment pairs, again from the first where more are wanted."""
    rows = DatasetLoader().load_file("sentiment", "train")
    rows = [rows[n % len(rows)] for n in range(pairs)]
    caa = TrainCAA(layers=[LAYER], use_chat_template=True)
    sta = TrainSTA(layers=[LAYER], use_chat_template=True)
    return {"caa": lambda: caa.train(model, rows), "sta": lambda: sta.train(model, rows)}


def passes(model: SteeredModel, pairs: int, layer: int) -> dict[str, Callable[[], object]]:
    """What both methods read, of made-up tokens by a made-up SAE."""
    both, sae = made_up_pairs(model, pairs), random_sae(model)
    return {
        "caa": lambda: read(model, both, layer),
        "sta": lambda: read(model, both, layer, sae),
    }


def read(
    model: SteeredModel,
    both: tuple[list[Passage], list[Passage]],
    layer: int,
    sae: SAE | None = None,
) -> None:
    """One pass over all passages."""
    contrast(model, *both, [layer], encoders={layer: sae.encode} if sae else None)


def random_sae(model: SteeredModel) -> SAE:
    """An SAE on the model's device, in float32."""
    torch.manual_seed(0)
    width, features = model.d_model, WIDER * model.d_model
    with model.device:
        return SAE(
            W_enc=torch.randn(width, features) / width**0.5,
            b_enc=torch.zeros(features),
            W_dec=torch.randn(features, width) / width**0.5,
            b_dec=torch.zeros(width),
        )


def main() -> None:
    """Measure, and print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--pairs", type=int, default=64)
    given = options.parse_args()
    pairs, repetitions = (8, 3) if given.quick else (given.pairs, given.repetitions)
    model = load(given.shape, given.device)
    embedded = given.shape == "embedded"
    layer = LAYER if embedded else model.depth // 2
    runs = trainings(model, pairs) if embedded else passes(model, pairs, layer)
    times = interleaved(runs, repetitions, model.device)
    ratios = {"sta/caa": ratio(times["sta"], times["caa"])}
    report({"shape": given.shape, "pairs": pairs, "layer": layer}, times, ratios, given.json)


if __name__ == "__main__":
    main()
