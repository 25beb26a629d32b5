"""The names that fields usually have in data files, and fields found by them."""

from collections.abc import Sequence

from steer.datasets.rows import Row

# Our field -> the names that it goes by, ours first.
FIELDS: dict[str, tuple[str, ...]] = {
    "question": ("question", "input", "prompt", "instruction", "query"),
    "matching": (
        *("matching", "answer_matching_behavior", "pos_answer", "winning_output", "chosen"),
        *("positive", "correct"),
    ),
    "not_matching": (
        *("not_matching", "answer_not_matching_behavior", "neg_answer", "losing_output"),
        *("rejected", "negative", "incorrect"),
    ),
    "text": ("text", "sentence"),
    "label": ("label", "is_toxic"),
    "input": ("input", "prompt", "instruction", "question", "query"),
    "reference_response": ("reference_response", "answer", "output", "continuation"),
    "choices": ("choices", "options"),
    "concept": ("concept",),
    "output": ("output",),
    "prompt": ("prompt",),
}
# What rows are for -> sets of fields of which one is enough, each with fields that may come with
# it; of two that go by one name, the first has it.
USES: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "train": (
        (("matching", "not_matching"), ("question", "prompt")),
        (("text", "label"), ("question",)),
        (("output",), ("prompt", "input")),
    ),
    "generation": ((("input",), ("reference_response", "choices", "concept")),),
}


def find_fields(rows: Sequence[Row], use: str, place: str, told: str) -> dict[str, str]:
    """Our fields that `rows` have -> their names there.

    Args:
        rows: As the file has them; a field may be missing in some.
        use: `train` or `generation`.
        place: The file, for messages.
        told: The config key that tells them, for messages.

    Raises:
        ValueError: A field may be one of several, or what is needed is not there.
    """
    there = list(dict.fromkeys(name for row in rows for name in row))
    enough = [needed for needed, _ in USES[use]]
    found = {ours: [n for n in names if n in there] for ours, names in FIELDS.items()}
    complete = [needed for needed in enough if all(found[ours] for ours in needed)]
    # One field says less than two: what goes with pairs may be called `output` too.
    complete = [needed for needed in complete if len(needed) > 1] or complete
    if len(complete) > 1:
        shown = " as well as ".join(" and ".join(needed) for needed in complete)
        raise ValueError(f"{place} has {shown}: {_tell(told, *complete[0])}")
    if not complete:
        shown = " or ".join(" and ".join(needed) for needed in enough)
        raise ValueError(
            f"{place} has the fields {', '.join(map(repr, there))}, and none of them is known as "
            f"{shown}: {_tell(told, *enough[0])}"
        )
    taken: dict[str, str] = {}
    for ours in (*dict(USES[use])[complete[0]], *complete[0]):
        names = [name for name in found[ours] if name not in taken.values()]
        if len(names) > 1 and ours not in names:
            shown = " or ".join(map(repr, names))
            raise ValueError(f"{place}: {ours} may be {shown}: {_tell(told, ours)}")
        if names:
            taken[ours] = ours if ours in names else names[0]
    return taken


def _tell(told: str, *fields: str) -> str:
    example = ", ".join(f"{field}: its name" for field in fields)
    return f"say which with {told}={{{example}}}"
