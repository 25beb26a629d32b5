"""Rows to learn from, rows to choose by, and rows that give the verdict: no question in two."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from steer.datasets import Row, is_pair, question_of

# Of the pairs, where none are held out by a file of their own: half to learn from.
SHARES = {"select": 0.25, "verdict": 0.25}
# Else a third to choose by, and the file's for the verdict.
SHARES_BESIDE_A_FILE = {"select": 1 / 3}
# More pairs would cost time and tell little.
MOST = {"select": 48, "verdict": 96}
FEWEST = 6


@dataclass(frozen=True)
class Splits:
    """Contrastive rows, apart.

    Attributes:
        train: Vectors are learnt from these, and in the end from those of `select` too.
        select: Settings are compared on these.
        verdict: Looked at once, when all is chosen.
        source: Where the last came from.
    """

    train: list[Row]
    select: list[Row]
    verdict: list[Row]
    source: str


def split(
    rows: Sequence[Row], held_out: Sequence[Row], seed: int, most_train: int | None = None
) -> Splits:
    """Part `rows` at random; rows with one question stay together.

    Args:
        rows: Contrastive pairs.
        held_out: Pairs kept for the verdict already; none where part of `rows` is to be.
        seed: Of the order.
        most_train: Learn from so many at most.

    Raises:
        ValueError: Rows that are no pairs, or too few of them.
    """
    for name, some in (("data", rows), ("held-out data", held_out)):
        if not all(is_pair(row) for row in some):
            raise ValueError(
                f"a search compares a matching and a not_matching answer: the {name} has rows "
                "that are no pairs"
            )
    seen = {_question(row) for row in held_out} - {""}
    fresh = [row for row in rows if _question(row) not in seen]
    shares = SHARES_BESIDE_A_FILE if held_out else SHARES
    parts = _parts(fresh, shares, seed)
    verdict = parts.get("verdict", list(held_out))[: MOST["verdict"]]
    found = Splits(
        parts["train"][:most_train],
        parts["select"],
        verdict,
        "held-out file" if held_out else "part of the data",
    )
    if min(map(len, (found.train, found.select, found.verdict))) < FEWEST:
        questions = len({_question(row) or number for number, row in enumerate(rows)})
        raise ValueError(
            f"too few pairs: {len(rows)} of {questions} different questions, and {len(held_out)} "
            f"held out, leave {len(found.train)} to learn from, {len(found.select)} to choose by "
            f"and {len(found.verdict)} for the verdict; each needs {FEWEST}, and pairs of one "
            "question stay together: give pairs with more questions, or verdict_dataset"
        )
    return found


def _question(row: Row) -> str:
    return " ".join(question_of(row, 0).lower().split())


def _parts(rows: Sequence[Row], shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(_question(row) or f"row {number}", []).append(row)
    ordered = list(groups.values())
    random.Random(seed).shuffle(ordered)
    parts: dict[str, list[Row]] = {name: [] for name in shares}
    wanted = {name: min(round(share * len(rows)), MOST[name]) for name, share in shares.items()}
    parts["train"] = []
    for group in ordered:
        short = [name for name, size in wanted.items() if len(parts[name]) + len(group) <= size]
        parts[short[0] if short else "train"] += group
    return parts


def shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    """The same pairs, half of them turned round, drawn at random.

    Exactly half: what the labels have taught is then gone, and not a chance part of it left.
    """
    turned = set(random.Random(seed).sample(range(len(rows)), len(rows) // 2))
    return [
        {**row, "matching": row["not_matching"], "not_matching": row["matching"]}
        if number in turned
        else row
        for number, row in enumerate(rows)
    ]
