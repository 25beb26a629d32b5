"""Where steered and unsteered answers part, and how far steering moved each token."""

from collections.abc import Sequence
from typing import Any

from steer.likelihood import AnswerScorer
from steer.models import Answer, Intervention, SteeredModel


def examples(
    model: SteeredModel,
    inputs: Sequence[str],
    plain: Sequence[Answer],
    steered: Sequence[Answer],
    others: Sequence[Answer],
    setting: Sequence[Intervention],
) -> list[dict[str, Any]]:
    """Answers side by side, JSON-like.

    Args:
        model: What is in force on it does not count.
        inputs: Users' texts.
        plain: Unsteered answers.
        steered: Answers under `setting`.
        others: Answers steered the other way; none where there is no such way.
        setting: Interventions.

    Returns:
        For each input `input`, `unsteered`, `steered`, `reversed`; `first_difference`, the number
        of the first token in which the steered answer is not the unsteered one, counted from 0,
        None where they are the same; and `tokens` of the steered answer: `text`, and its log P
        with (`steered`) and without (`unsteered`) steering, given all before it, in nats.
    """
    kept = [answer for answer in steered if answer.new_ids]
    scorer = AnswerScorer(model, [a.prompt_ids for a in kept], [a.new_ids for a in kept])
    logs = iter(zip(scorer.log_probs(setting), scorer.log_probs([]), strict=True))
    found = []
    for number, (text, one, answer) in enumerate(zip(inputs, plain, steered, strict=True)):
        pairs = (
            zip(*(logs_of.tolist() for logs_of in next(logs)), strict=True)
            if answer.new_ids
            else ()
        )
        found.append(
            {
                "input": text,
                "unsteered": one.text,
                "steered": answer.text,
                "reversed": others[number].text if others else None,
                "first_difference": first_difference(one.new_ids, answer.new_ids),
                "tokens": [
                    {"text": piece, "steered": s, "unsteered": u}
                    for piece, (s, u) in zip(_pieces(model, answer.new_ids), pairs, strict=True)
                ],
            }
        )
    return found


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first place in which two answers differ; None where they are the same."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return None if len(one) == len(other) else min(len(one), len(other))


def _pieces(model: SteeredModel, ids: Sequence[int]) -> list[str]:
    """Each token's part of the text; a character of several tokens is the last one's."""
    tokenizer: Any = model.tokenizer
    texts = [tokenizer.decode(ids[: n + 1]).rstrip("\ufffd") for n in range(len(ids))]
    return [text[len(texts[n - 1]) if n else 0 :] for n, text in enumerate(texts)]
