"""What steering costs in the answers themselves: perplexity, repetition, refusals."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from steer.datasets import DatasetLoader
from steer.evaluate.distinctness import distinct
from steer.evaluate.refusal import REFUSAL, xstest_label
from steer.models import Answer, ChatFormat, SteeredModel
from steer.models.generation import answer_of_ids
from steer.progress import progress
from steer.search.answers import swept_answers
from steer.search.passes import Setting, Sweep, log_likelihood
from steer.search.settings import Limits
from steer.search.store import Store

UNSTEERED = "unsteered"
# A data set of requests that sound harmful and are not; its safe rows.
HARMLESS, SAFE = "xstest", "safe"
ORDER = 3  # of the n-grams that repeat


@dataclass(frozen=True)
class Damage:
    """The price of a setting.

    Attributes:
        kl: KL(unsteered || steered) on neutral texts, in nats a token.
        perplexity_ratio: Of steered over unsteered answers, under the untouched model.
        repetition: Share of an answer's 3-grams that are repeats, less that of unsteered answers.
        refusal: Share of harmless prompts refused, less that without steering.
        prompts: How many were answered for the second and third.
        harmless: How many for the last.
    """

    kl: float
    perplexity_ratio: float
    repetition: float
    refusal: float
    prompts: int
    harmless: int

    def over(self, limits: Limits) -> list[str]:
        """The limits that it breaks, in words."""
        pairs = [
            ("KL", self.kl, limits.max_kl),
            ("perplexity ratio", self.perplexity_ratio, limits.max_perplexity_ratio),
            ("repetition", self.repetition, limits.max_repetition),
            ("refusal of harmless prompts", self.refusal, limits.max_refusal),
        ]
        return [
            f"{name} {value:.2f} (limit {most:g})" for name, value, most in pairs if value > most
        ]


class Answers:
    """Answers to the same prompts under many settings, and what they cost.

    Args:
        model: What is in force on it does not act.
        inputs: Users' texts, for perplexity and repetition.
        harmless: Users' texts that nobody should refuse.
        chat: How they are put.
        tokens: Most new ones of an answer.
        store: Keeps what is found.
        part: Names these answers there.
    """

    def __init__(
        self,
        model: SteeredModel,
        inputs: Sequence[str],
        harmless: Sequence[str],
        chat: ChatFormat,
        tokens: int,
        store: Store,
        part: str,
    ) -> None:
        self.model, self.store, self.part = model, store, part
        self.inputs, self.harmless = list(inputs), list(harmless)
        texts = [chat.text(model.tokenizer, text) for text in [*inputs, *harmless]]
        self.prompts = [chat.encode(model.tokenizer, text) for text in texts]
        self.params = {"max_new_tokens": tokens, "do_sample": False}

    def of(self, names: Sequence[str], settings: Sequence[Setting]) -> list[list[Answer]]:
        """The answers under each setting, to `inputs` and then to `harmless`."""
        count = len(self.prompts)
        places = [f"{name}/{number}" for name in names for number in range(count)]

        def answered(missing: list[int]) -> Iterable[tuple[int, list[int]]]:
            wanted = sorted({place // count for place in missing})
            chosen = [settings[number] for number in wanted]
            total = len(wanted) * count
            with progress(total=total, what=f"answering ({self.part})", unit="answer") as bar:
                for (s, p), answer in swept_answers(self.model, self.prompts, chosen, self.params):
                    bar.update()
                    yield wanted[s] * count + p, answer.new_ids

        ids = self.store.many(f"{self.part} answers", places, answered)
        rows = [
            answer_of_ids(self.model, p, new)
            for p, new in zip(self.prompts * len(names), ids, strict=True)
        ]
        return [rows[n : n + count] for n in range(0, len(rows), count)]

    def damage(
        self, names: Sequence[str], settings: Sequence[Setting], kls: Sequence[float]
    ) -> tuple[list[Damage], list[list[Answer]]]:
        """The price of each setting, given its KL; and the answers, the unsteered ones first."""
        answers = self.of([UNSTEERED, *names], [[], *settings])
        figures = [self._figures(some) for some in answers]
        plain, *steered = zip(self._surprises(answers), figures, strict=True)
        found = []
        for kl, (nats, (repeats, refused)) in zip(kls, steered, strict=True):
            ratio = math.exp(min(nats - plain[0], 700.0))
            found.append(
                Damage(
                    kl,
                    ratio,
                    repeats - plain[1][0],
                    refused - plain[1][1],
                    len(self.inputs),
                    len(self.harmless),
                )
            )
        return found, answers

    def _figures(self, answers: Sequence[Answer]) -> tuple[float, float]:
        """Mean share of repeated 3-grams, and share of refusals."""
        count = len(self.inputs)
        repeats = [_repeated(answer.new_ids) for answer in answers[:count]]
        refused = [xstest_label(answer.text) == REFUSAL for answer in answers[count:]]
        return sum(repeats) / max(len(repeats), 1), sum(refused) / max(len(refused), 1)

    def _surprises(self, answers: Sequence[Sequence[Answer]]) -> list[float]:
        """-log P of a setting's answers under the untouched model, in nats a token.

        A setting that says nothing has infinity.
        """
        count = len(self.inputs)
        kept = [(n, a) for n, some in enumerate(answers) for a in some[:count] if a.new_ids]
        sweep = Sweep(self.model, [a.prompt_ids for _, a in kept], [a.new_ids for _, a in kept])
        nats, tokens = [0.0] * len(answers), [0] * len(answers)
        for (number, answer), value in zip(
            kept, sweep.run([], log_likelihood)[0].tolist(), strict=True
        ):
            nats[number] -= value
            tokens[number] += len(answer.new_ids)
        return [n / t if t else math.inf for n, t in zip(nats, tokens, strict=True)]


def _repeated(tokens: Sequence[int]) -> float:
    share = distinct([[str(token) for token in tokens]], ORDER, "ngrams")
    return 1 - share if share else 0.0


def harmless_prompts() -> list[str]:
    """Those that come with the project."""
    rows: list[Any] = DatasetLoader(source="sample").load_file(HARMLESS, "generation")
    return [str(row["input"]) for row in rows if row.get("reference_response") == SAFE]
