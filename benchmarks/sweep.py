"""A grid of layers and strengths: as sweeps, and as a loop over the settings.

    python benchmarks/sweep.py
    python benchmarks/sweep.py --layers 2 --repetitions 9

`margins`: likelihoods of the answers of held-out pairs under every setting; the loop reads every
row whole for each setting, in passes of as many rows. `answers`: greedy answers; the loop is one
call of `generate_batches` for each setting. Both must give the same.
"""

import torch
from _measure import interleaved, load, made_up_pairs, parser, peak, ratio, report

from steer.datasets import DatasetLoader
from steer.effect import pairs_of
from steer.likelihood import last_logits
from steer.models import Add, ChatFormat, EditLayer, SteeredModel, generate_batches
from steer.models.batching import padded, run_passes
from steer.search.answers import swept_answers
from steer.search.passes import Setting, Sweep, log_likelihood

STRENGTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)  # of the vector's length, of the residual's
CHAT = ChatFormat(use_chat_template=True)
Texts = tuple[list[list[int]], list[list[int]]]


def pairs(model: SteeredModel, shape: str, number: int) -> Texts:
    """Prompts and answers, both sides of `number` pairs."""
    if shape == "embedded":
        rows = DatasetLoader().load_file("sentiment", "valid")[:number]
        found = pairs_of(model, rows, CHAT)
        prompts = [pair.prompt for pair in found] * 2
        return prompts, [pair.matching for pair in found] + [pair.not_matching for pair in found]
    sides = made_up_pairs(model, number)
    passages = [passage for side in sides for passage in side]
    return [list(p.ids[: p.start]) for p in passages], [list(p.ids[p.start :]) for p in passages]


def questions(model: SteeredModel, shape: str, number: int) -> list[list[int]]:
    """Prompts to answer."""
    if shape != "embedded":
        return pairs(model, shape, number)[0][:number]
    rows = DatasetLoader().load_file("sentiment", "generation")[:number]
    tokenizer = model.tokenizer
    return [CHAT.encode(tokenizer, CHAT.text(tokenizer, row["input"])) for row in rows]


def grid(model: SteeredModel, layers: int, strengths: int) -> list[Setting]:
    """Random vectors at evenly spaced layers."""
    torch.manual_seed(0)
    places = [round((n + 1) * model.depth / (layers + 1)) - 1 for n in range(layers)]
    sample = torch.randint(0, 500, (1, 32), device=model.device)
    found = []
    for layer, hidden in model.read({"input_ids": sample}, places).items():
        vector = torch.randn(model.d_model)
        vector *= float(hidden.float().norm(dim=-1).median()) / vector.norm()
        found += [[EditLayer(layer, Add(vector, s))] for s in STRENGTHS[:strengths]]
    return found


@torch.inference_mode()
def margins_in_a_loop(model: SteeredModel, texts: Texts, settings: list[Setting]) -> torch.Tensor:
    """Each setting reads each row from its first token to its last."""
    rows = [[*prompt, *answer] for prompt, answer in zip(*texts, strict=True)]
    total = torch.empty(len(settings), len(rows))
    # As many rows in a pass as the sweep has, which knows what they begin with.
    prefix = Sweep(model, *texts).prefix
    lengths = [len(row) - prefix for row in rows]
    for number, setting in enumerate(settings):

        def run(batch: list[int], setting: Setting = setting) -> torch.Tensor:
            answers = [texts[1][row] for row in batch]
            longest = max(map(len, answers))
            with model.steering(setting):
                logits = last_logits(model, [rows[row] for row in batch], longest + 1)
            ids, mask = padded(answers, 0, "left", logits.device)
            found = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)
            return found.masked_fill(mask == 0, 0).sum(-1).cpu()

        for batch, values in run_passes(lengths, "auto", model.device, run):
            total[number, batch] = values
    return total


def answers_in_a_loop(
    model: SteeredModel, prompts: list[list[int]], settings: list[Setting], params: dict
) -> list[list[list[int]]]:
    """One call for each setting, all prompts in a batch."""
    found = []
    for setting in settings:
        rows: dict[int, list[int]] = {}
        calls = generate_batches(
            model, prompts, params, interventions=setting, batch_size=len(prompts)
        )
        for numbers, answers in calls:
            rows.update(zip(numbers, [answer.new_ids for answer in answers], strict=True))
        found.append([rows[row] for row in range(len(prompts))])
    return found


def answers_swept(
    model: SteeredModel, prompts: list[list[int]], settings: list[Setting], params: dict
) -> list[list[list[int]]]:
    """All at once."""
    found = {place: a.new_ids for place, a in swept_answers(model, prompts, settings, params)}
    return [[found[s, p] for p in range(len(prompts))] for s in range(len(settings))]


def main() -> None:
    """Measure."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--layers", type=int, default=5)
    options.add_argument("--strengths", type=int, default=7)
    options.add_argument("--pairs", type=int, default=24)
    options.add_argument("--prompts", type=int, default=16)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--only", choices=["margins", "answers"])
    given = options.parse_args()
    if given.quick:
        given.repetitions, given.layers, given.strengths = 3, 2, 3
        given.pairs, given.prompts, given.tokens = 6, 4, 8
    model = load(given.shape, given.device)
    settings = grid(model, given.layers, given.strengths)
    texts = pairs(model, given.shape, given.pairs)
    prompts = questions(model, given.shape, given.prompts)
    params = {"max_new_tokens": given.tokens, "do_sample": False}
    sweep, agree = Sweep(model, *texts), {}
    runs = {}
    if given.only != "answers":
        loop = margins_in_a_loop(model, texts, settings)
        difference = (sweep.run(settings, log_likelihood)[1:] - loop).abs().max()
        agree["largest difference of log P"] = float(difference)
        runs["margins swept"] = lambda: sweep.run(settings, log_likelihood)
        runs["margins in a loop"] = lambda: margins_in_a_loop(model, texts, settings)
    if given.only != "margins":
        every = (model, prompts, settings, params)
        one, other = answers_swept(*every), answers_in_a_loop(*every)
        same = [a == b for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True)]
        agree["answers"], agree["answers with the same tokens"] = len(same), sum(same)
        runs["answers swept"] = lambda: answers_swept(*every)
        runs["answers in a loop"] = lambda: answers_in_a_loop(*every)
    times = interleaved(runs, given.repetitions, model.device)
    kinds = [kind for kind in ("margins", "answers") if f"{kind} swept" in times]
    ratios = {
        f"{kind}: loop / sweep": ratio(times[f"{kind} in a loop"], times[f"{kind} swept"])
        for kind in kinds
    }
    names = ("layers", "strengths", "pairs", "prompts", "tokens", "shape", "repetitions")
    what = {name: getattr(given, name) for name in names}
    report(what | agree | {"peak_mib": peak(model)}, times, ratios, given.json)


if __name__ == "__main__":
    main()
