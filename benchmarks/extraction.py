"""How fast CAA vectors are extracted.

    python benchmarks/extraction.py
    python benchmarks/extraction.py --shape llama3-8b --pairs 256

In one run: (loop) a pair at a time, the whole network with head and gradient, as EasyEdit2 does;
(steer) this library; (floor) nothing but the truncated network on the same batches, without
sharing what all rows begin with. `--memory` measures the peak for 64 and 640 pairs instead.
"""

import json
import subprocess
import sys

import torch
from _measure import interleaved, load, made_up_pairs, parser, peak, ratio, report
from torch import nn

from steer.activations import contrast
from steer.datasets import DatasetLoader
from steer.methods.caa import TrainCAA
from steer.models import SteeredModel
from steer.models.batching import padded, run_passes
from steer.passages import Passage


def loop(
    model: SteeredModel, wanted: list[Passage], shunned: list[Passage], layer: int
) -> torch.Tensor:
    """Two passes a pair, nothing shared, nothing left out."""
    differences = []
    read: list[torch.Tensor] = []
    model.model.requires_grad_(True)

    def keep(_module: nn.Module, _args: object, output: torch.Tensor) -> None:
        read[:] = [output]

    with model.blocks[layer].register_forward_hook(keep):
        for sides in zip(wanted, shunned, strict=True):
            means = []
            for passage in sides:
                model.model(torch.tensor([list(passage.ids)], device=model.device))
                means.append(read[0][0, passage.start :].mean(dim=0).detach().cpu())
            differences.append(means[0] - means[1])
    return torch.stack(differences).mean(dim=0)


@torch.inference_mode()
def floor(model: SteeredModel, wanted: list[Passage], shunned: list[Passage], layer: int) -> None:
    """The blocks up to `layer` on batches of all rows, and nothing else."""
    rows = [passage.ids for passage in [*wanted, *shunned]]

    def run(chosen: list[int]) -> None:
        ids, _ = padded([rows[row] for row in chosen], 0, "right", model.device)
        model.decoder(input_ids=ids, use_cache=False)

    blocks = model.decoder.layers
    try:
        model.decoder.layers = blocks[: layer + 1]
        for _ in run_passes([len(row) for row in rows], "auto", model.device, run):
            pass
    finally:
        model.decoder.layers = blocks


def data_pairs(model: SteeredModel, number: int, chat: bool) -> tuple[list[Passage], list[Passage]]:
    """The shipped sentiment pairs, again from the first where more are asked for."""
    rows = DatasetLoader().load_file("sentiment", "train")
    method = TrainCAA(use_chat_template=chat)
    pairs = [method.passages(model, rows[n % len(rows)], n) for n in range(number)]
    return [wanted for wanted, _ in pairs], [shunned for _, shunned in pairs]


def peak_memory(arguments: list[str]) -> None:
    """Peak memory of a fresh process for 64 and for 640 pairs."""
    peaks = {}
    for pairs in (64, 640):
        command = [sys.executable, __file__, *arguments, "--pairs", str(pairs), "--peak"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        peaks[pairs] = float(out.strip().splitlines()[-1])
    print(json.dumps({"peak_mib": peaks, "growth": peaks[640] / peaks[64]}, indent=2))


def main() -> None:
    """Measure, and print the figures."""
    options = parser(__doc__ or "")
    options.add_argument("--pairs", type=int, default=64)
    options.add_argument("--layer", type=int, help="half the depth where not given")
    options.add_argument("--chat", action="store_true", help="put the pairs into a chat template")
    options.add_argument("--memory", action="store_true", help="peak memory for 64 and 640 pairs")
    options.add_argument("--peak", action="store_true", help="only run once and print the peak")
    given = options.parse_args()
    if given.memory:
        peak_memory([a for a in sys.argv[1:] if a != "--memory"])
        return
    pairs, repetitions = (8, 3) if given.quick else (given.pairs, given.repetitions)
    model = load(given.shape, given.device)
    layer = model.depth // 2 if given.layer is None else given.layer
    embedded = given.shape == "embedded"
    both = data_pairs(model, pairs, given.chat) if embedded else made_up_pairs(model, pairs)
    if given.peak:
        contrast(model, *both, [layer])
        print(peak(model))
        return
    runs = {
        "loop": lambda: loop(model, *both, layer),
        "steer": lambda: contrast(model, *both, [layer]),
        "floor": lambda: floor(model, *both, layer),
    }
    times = interleaved(runs, repetitions, model.device)
    what = {"shape": given.shape, "pairs": pairs, "layer": layer, "chat": given.chat}
    ratios = {
        "loop/steer": ratio(times["loop"], times["steer"]),
        "steer/floor": ratio(times["steer"], times["floor"]),
    }
    each = {f"{n}_ms_a_pair": 1000 * sorted(t)[len(t) // 2] / pairs for n, t in times.items()}
    report(what | each, times, ratios, given.json)


if __name__ == "__main__":
    main()
