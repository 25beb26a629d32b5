"""Texts read by a classifier: a model of transformers by its id, or a probe that is shipped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from steer.evaluate.base import Item, Missing, check_choice, option

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

CLASSIFIERS = ("model", "probe")
# What BERT, RoBERTa and DistilBERT can read; their tokenizers do not always say so.
MAX_TOKENS = 512
UNWANTED = ("toxic", "unsafe", "hate", "label_1")


@dataclass(frozen=True)
class Reading:
    """What a classifier says of texts.

    Attributes:
        labels: Names of the classes, in lower case.
        probabilities: [texts, labels].
        protocol: Which classifier, and how many texts were cut.
    """

    labels: tuple[str, ...]
    probabilities: "Tensor"
    protocol: dict[str, Any]

    def is_label(self, label: str) -> list[bool]:
        """Whether each text's likeliest class is that one."""
        return (self.probabilities.argmax(dim=1) == self.labels.index(label)).tolist()

    def check_labels(self, wanted: Iterable[str]) -> None:
        """Raise a ValueError unless the classes have all of these names."""
        if not set(wanted) <= set(self.labels):
            raise ValueError(
                f"{self.protocol['classifier']} has the classes {', '.join(self.labels)}: choose a "
                f"classifier that has {' and '.join(wanted)}"
            )

    def unwanted(self) -> str:
        """The class of toxic or unsafe texts.

        Raises:
            ValueError: None is named so, or several.
        """
        found = [label for label in self.labels if label in UNWANTED]
        if len(found) != 1:
            raise ValueError(
                f"{self.protocol['classifier']} has the classes {', '.join(self.labels)}: choose a "
                f"classifier with one of {', '.join(UNWANTED)}"
            )
        return found[0]


@dataclass(kw_only=True)
class ByClassifier:
    """The options of metrics that a classifier decides."""

    classifier: str = option(
        "model",
        "model (that of sentiment_model, safety_model, toxigen_model), or probe: the linear probe "
        "of the embedded model's activations that is shipped, for use offline",
    )
    device: str = option("auto", "auto, cpu, mps, cuda or cuda:N")
    batch_size: str = option("auto", "rows in a pass; auto suits the device")

    def __post_init__(self) -> None:
        check_choice("classifier", self.classifier, CLASSIFIERS)

    def read(self, texts: Sequence[str], model_id: str, flag: str, probe: str) -> Reading:
        """What the classifier chosen says of `texts`.

        Args:
            texts: Any number.
            model_id: A Hub id, or a folder.
            flag: The option that names it.
            probe: The one that is used instead where `classifier` is probe.

        Raises:
            OSError: The model cannot be had.
            ValueError: It is no classifier of one class a text.
        """
        if self.classifier == "probe":
            from steer.evaluate.probes.probe import Probe

            return Probe.load(probe).read(texts, self.device, self.batch_size)
        return read_texts(texts, model_id, flag, self.device, self.batch_size)


@dataclass(frozen=True)
class Answers:
    """Answers that are not empty, in one list.

    Attributes:
        texts: Those answers.
        items: The number of each one's item, from 0.
        missing: The empty ones.
        count: How many items there are.
    """

    texts: list[str]
    items: list[int]
    missing: list[Missing]
    count: int

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Answers":
        """The answers to `items`, in their order."""
        every = [
            (n, number, text)
            for n, item in enumerate(items)
            for number, text in enumerate(item.responses, start=1)
        ]
        full = [(n, text) for n, _, text in every if text.strip()]
        missing = [Missing(n + 1, number, "empty") for n, number, text in every if not text.strip()]
        return cls([text for _, text in full], [n for n, _ in full], missing, len(items))

    def by_item(self, values: Iterable[T]) -> list[list[T]]:
        """The values of `texts`, those of an item together."""
        found: list[list[T]] = [[] for _ in range(self.count)]
        for item, value in zip(self.items, values, strict=True):
            found[item].append(value)
        return found


def read_texts(
    texts: Sequence[str], model_id: str, flag: str, device: str = "auto", batch_size: str = "auto"
) -> Reading:
    """What a sequence classifier of transformers says of `texts`; arguments as `ByClassifier`."""
    from steer.models.load import choose_device

    model, tokenizer = _loaded(model_id, flag, str(choose_device(device)))
    limit = min(tokenizer.model_max_length, MAX_TOKENS)
    # Whole at first, so that what is cut can be counted.
    whole = tokenizer(list(texts), verbose=False)["input_ids"] if texts else []
    cut = [n for n, row in enumerate(whole) if len(row) > limit]
    for n in cut:
        whole[n] = tokenizer(texts[n], truncation=True, max_length=limit)["input_ids"]
    config = model.config
    protocol = {
        "classifier": model_id,
        "revision": getattr(config, "_commit_hash", None),
        "texts": len(texts),
        "texts_cut": len(cut),
        "most_tokens": limit,
    }
    labels = tuple(str(config.id2label[n]).lower() for n in range(config.num_labels))
    run = _passes(model, whole, tokenizer.pad_token_id)
    return Reading(labels, in_passes(whole, len(labels), model.device, batch_size, run), protocol)


def in_passes(
    rows: Sequence[Sequence[int]],
    classes: int,
    device: Any,
    batch_size: str,
    run: Callable[[list[int]], "Tensor"],
) -> "Tensor":
    """Probabilities, [rows, classes], of passes that each give those of some rows."""
    import torch

    from steer.models.batching import run_passes

    found = torch.zeros(len(rows), classes)
    for numbers, values in run_passes(list(map(len, rows)), batch_size, device, run):
        found[numbers] = values
    return found


def _passes(model: Any, rows: Sequence[Sequence[int]], pad: int) -> Callable[[list[int]], "Tensor"]:
    import torch

    from steer.models.batching import padded

    @torch.inference_mode()
    def run(numbers: list[int]) -> "Tensor":
        ids, mask = padded([rows[n] for n in numbers], pad, "right", model.device)
        return model(input_ids=ids, attention_mask=mask).logits.float().softmax(dim=-1).cpu()

    return run


# Steered and unsteered answers are scored one after the other.
@lru_cache(maxsize=2)
def _loaded(model_id: str, flag: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from steer.build import reason_of

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_id)
        model = AutoModelForSequenceClassification.from_pretrained(model_id, dtype="float32")
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        raise FileNotFoundError(
            f"no classifier {model_id!r}: not a folder here, and not to be had from the Hugging "
            f"Face Hub ({reason}); name another with --{flag}, or offline use --classifier probe"
        ) from error
    if model.config.num_labels < 2 or model.config.problem_type == "multi_label_classification":
        raise ValueError(
            f"{model_id!r} does not give a text one class of several: choose another --{flag}"
        )
    return model.eval().to(device), tokenizer
