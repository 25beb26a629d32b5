"""Perplexity of answers given their prompts."""

import json
import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from steer.evaluate.base import Item, Missing, Scores, option

if TYPE_CHECKING:
    from steer.models import SteeredModel

# From here on EasyEdit2 leaves perplexities out of the mean.
LARGE = 1e4


@dataclass(frozen=True)
class Surprise:
    """What an answer costs behind its prompt.

    Attributes:
        nats: -log P of the answer given the prompt.
        tokens: Over so many tokens; above 0.
    """

    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(nats a token)."""
        return math.exp(self.nats / self.tokens)


def surprise(text: Sequence[float], prompt: Sequence[float] = ()) -> Surprise:
    """E(p + g) - E(p) over n(p + g) - n(p) tokens, of log-probabilities of tokens.

    E is over a text's tokens from the second on. Tokens at the beginning that p + g and p share
    cancel out, so that they may be left out of both.

    Args:
        text: Of prompt and answer, p + g, as one string.
        prompt: Of the prompt alone, p.
    """
    return Surprise(math.fsum(prompt) - math.fsum(text), len(text) - len(prompt))


def perplexity_figures(found: Sequence[Surprise], drop_over: float | None = None) -> dict[str, Any]:
    """Mean, total, median, and the share of large ones; None each where nothing was found."""
    each = [one.perplexity for one in found]
    kept = [value for value in each if drop_over is None or value < drop_over]
    nats, tokens = math.fsum(one.nats for one in found), sum(one.tokens for one in found)
    return {
        "perplexity": statistics.fmean(kept) if kept else None,
        "total_perplexity": Surprise(nats, tokens).perplexity if found else None,
        "perplexity_median": statistics.median(each) if each else None,
        "perplexity_over_1e4": _share_of_large(each) if each else None,
    }


def _share_of_large(values: Sequence[float]) -> float:
    return statistics.fmean(value >= LARGE for value in values)


# All that a `ModelSource` is told: of a run's own, the weights that it holds are found again.
# The first are of one model, the others of a machine too.
OF_ONE_MODEL = ("model_name_or_path", "revision", "trust_remote_code", "model_kwargs")
MODEL_OPTIONS = (
    *OF_ONE_MODEL,
    *("device", "dtype", "device_map", "load_in_8bit", "load_in_4bit"),
)


@dataclass(kw_only=True)
class Perplexity:
    """exp((E(p + g) - E(p)) / (n(p + g) - n(p))) of each answer g to its prompt p.

    As in DExperts (Liu et al., 2021, https://arxiv.org/abs/2105.03023) and EasyEdit2: p is the
    item's input, p + g is tokenised as one string, E(x) is -log P of its tokens from the second
    on, n(x) their number; a beginning-of-text token is there only where the tokenizer adds it.

    `perplexity` is the mean over answers, `total_perplexity` that of all answers' tokens together.
    Nothing is left out of the mean by default: EasyEdit2 drops what is 1e4 and more, so that its
    mean gets better as a model breaks. `ppl_drop_over=1e4` gives its number. Since one broken
    answer may decide the mean, the median and the share of 1e4 and more stand beside it.
    """

    model_name_or_path: str | None = option(
        None, "model that scores: Hub id, folder or .gguf file; the embedded one by default"
    )
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N")
    dtype: str = option("auto", "of that model: auto, float32, bfloat16, float16")
    device_map: Any = option(None, "auto spreads that model over several devices")
    load_in_8bit: bool = option(False, "quantise that model")
    load_in_4bit: bool = option(False, "quantise that model")
    revision: str | None = option(None, "of that model, where it is a Hub id")
    trust_remote_code: bool = option(False, "whether code that comes with that model may run")
    model_kwargs: Any = option(None, "more for that model's from_pretrained, as JSON")
    batch_size: str = option("auto", "rows in a pass; auto suits the device")
    ppl_drop_over: float | None = option(
        None, "leave perplexities of this and more out of their mean (EasyEdit2: 1e4)"
    )

    def __post_init__(self) -> None:
        self.model_kwargs = _mapping(self.model_kwargs)

    def score(self, items: Sequence[Item]) -> Scores:
        """Answers without a token of their own are missing; long texts are cut at their end."""
        from steer.models.embedded import EMBEDDED
        from steer.models.facts import model_facts
        from steer.models.load import ModelSource

        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name in MODEL_OPTIONS}
        named["model_name_or_path"] = self.model_name_or_path or EMBEDDED
        model = ModelSource(**named).load()
        found = answer_surprises(model, items, self.batch_size)
        answers = [one for of_item in found.of_items for one in of_item]
        protocol = {
            "model": model_facts(model),
            "answers": len(answers),
            "tokens": sum(one.tokens for one in answers),
            "texts_cut": found.cut,
            "drop_over": self.ppl_drop_over,
        }
        figures = perplexity_figures(answers, self.ppl_drop_over)
        each = [perplexity_figures(of_item, self.ppl_drop_over) for of_item in found.of_items]
        means = ("perplexity", "perplexity_over_1e4")
        values = {key: [figures[key] for figures in each] for key in means}
        return Scores(figures, values, protocol, found.missing)


def _mapping(given: Any) -> dict[str, Any]:
    """`model_kwargs` of a config, or of a command line."""
    with suppress(json.JSONDecodeError):
        found = json.loads(given) if isinstance(given, str) else given or {}
        if isinstance(found, dict):
            return found
    example = '{"attn_implementation": "eager"}'
    raise ValueError(f"model_kwargs must be a mapping, as {example}: got {given!r}")


@dataclass(frozen=True)
class _Answer:
    """An answer in tokens, of prompt and answer as one string and of the prompt alone."""

    item: int
    response: int
    text: list[int]
    prompt: list[int]

    def parts(self) -> Iterator[tuple[list[int], list[int]]]:
        """What is scored, as (given, scored): of the text, then of the prompt where they part."""
        from steer.models.prefix import common_start

        # A text's first token is given, never scored.
        start = max(common_start([self.text, self.prompt]), 1)
        yield self.text[:start], self.text[start:]
        yield self.prompt[:start], self.prompt[start:]

    def missing(self, reason: str) -> Missing:
        """Why it has no score."""
        return Missing(self.item + 1, self.response + 1, reason)


@dataclass(frozen=True)
class Surprises:
    """What was found.

    Attributes:
        of_items: Each item's answers that have a score.
        missing: Those that have none.
        cut: Texts cut at their end, to what the model can read.
    """

    of_items: list[list[Surprise]]
    missing: list[Missing]
    cut: int


def answer_surprises(
    model: "SteeredModel", items: Sequence[Item], batch_size: str = "auto"
) -> Surprises:
    """What each answer costs the untouched model.

    Only tokens behind the prompt are scored. Where the tokenizer merges the prompt's end with the
    answer's start, the prompt's own last tokens are scored too, in a row of their own.
    """
    from steer.likelihood import answer_log_probs

    limit = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    answers, missing = [], []
    for answer in _in_tokens(model.tokenizer, items):
        reason = _why_missing(answer, items, limit)
        missing += [answer.missing(reason)] if reason else []
        answers += [] if reason else [answer]
    cut = [replace(a, text=a.text[:limit]) for a in answers]
    parts = [part for answer in cut for part in answer.parts()]
    rows = [n for n, (_, scored) in enumerate(parts) if scored]
    given, scored = ([parts[n][side] for n in rows] for side in (0, 1))
    found = answer_log_probs(model, given, scored, interventions=[], batch_size=batch_size)
    log_probs = {row: each.tolist() for row, each in zip(rows, found, strict=True)}
    of_items: list[list[Surprise]] = [[] for _ in items]
    for n, answer in enumerate(cut):
        one = surprise(log_probs[2 * n], log_probs.get(2 * n + 1, ()))
        if math.isfinite(one.nats):
            of_items[answer.item].append(one)
        else:
            missing.append(answer.missing("the model gives no finite probability"))
    shorter = sum(len(a.text) < len(b.text) for a, b in zip(cut, answers, strict=True))
    return Surprises(of_items, missing, shorter)


def _in_tokens(tokenizer: Any, items: Sequence[Item]) -> Iterator[_Answer]:
    for number, item in enumerate(items):
        prompt = tokenizer(item.input)["input_ids"]
        texts = tokenizer([item.input + response for response in item.responses])["input_ids"]
        for response, text in enumerate(texts):
            yield _Answer(number, response, text, prompt)


def _why_missing(answer: _Answer, items: Sequence[Item], limit: int | None) -> str:
    if not items[answer.item].responses[answer.response]:
        return "empty"
    if len(answer.text) <= max(len(answer.prompt), 1):
        return "no token of its own behind the prompt"
    if limit is not None and len(answer.prompt) >= limit:
        return f"the prompt alone fills the {limit} tokens that the model can read"
    return ""
