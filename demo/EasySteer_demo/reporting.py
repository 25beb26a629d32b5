"""The steering report of one answer, as Markdown made of numbers alone."""

from itertools import takewhile

from answering import Pair
from recipes import Done


def report_of(pair: Pair, done: Done) -> str:
    """What steering did, and whether the answers differ."""
    return "\n\n".join([_verdict(pair), _counts(pair), _numbers(done)])


def _verdict(pair: Pair) -> str:
    plain, steered = pair.unsteered.split(), pair.steered.split()
    if plain == steered:
        return "**Both answers are the same.** Raise the strength, or ask another question."
    same = sum(
        1 for _ in takewhile(lambda two: two[0] == two[1], zip(plain, steered, strict=False))
    )
    return f"**The answers differ** from word {same + 1} on."


def _counts(pair: Pair) -> str:
    if not pair.layers:
        return "No activation was changed: the prompt alone steers, or the strength is 0."
    head = "| layer | passes | tokens | changed | dose |\n|---|---|---|---|---|"
    rows = [
        f"| {layer} | {c['passes']} | {c['tokens']} | {c['tokens_changed']} | {c['dose']:.1%} |"
        for layer, c in pair.layers.items()
    ]
    note = "dose: mean |change| / |residual|, attention sinks left out"
    return "\n".join([head, *rows]) + f"\n\n<small>{note}</small>"


def _numbers(done: Done) -> str:
    norms = [
        f"norm of {name}: {float(vector.float().norm()):.1f}"
        for vectors in done.made.vectors.values()
        for name, vector in vectors.items()
    ]
    return f"<small>{'; '.join(norms)}</small>" if norms else ""
