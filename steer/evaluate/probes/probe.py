"""A class of text, read off the embedded model's activations (Alain & Bengio, 2017).

https://arxiv.org/abs/1610.01644
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.build import pick
from steer.evaluate.classifier import MAX_TOKENS, Reading

if TYPE_CHECKING:
    from torch import Tensor

    from steer.models import SteeredModel

FOLDER = Path(__file__).parent
PROBES = {"sentiment": FOLDER / "sentiment.json", "toxicity": FOLDER / "toxicity.json"}


@dataclass(frozen=True, kw_only=True)
class Probe:
    """P(labels[1]) = sigmoid(coefficients . h + intercept).

    h is the output of a decoder block at the last token of a question that is put behind the text,
    which is where the model must know what the text is.

    Attributes:
        name: What it tells apart.
        labels: The two classes.
        question: Put behind the text.
        layer: The decoder block, counted from 0.
        coefficients: [d_model].
        intercept: Added to them.
        model: Id and weight fingerprint of the model that it reads.
        training: Data, counts, accuracy, seed.
    """

    name: str
    labels: tuple[str, str]
    question: str
    layer: int
    coefficients: Sequence[float]
    intercept: float
    model: dict[str, Any]
    training: dict[str, Any]

    @classmethod
    def load(cls, name: str) -> "Probe":
        """One of `PROBES`."""
        from steer.files import read_json

        values = read_json(pick("probe", name, PROBES))
        return cls(**values | {"labels": tuple(values["labels"])})

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        from steer.files import write_json

        write_json(path, asdict(self), indent=1)

    def read(self, texts: Sequence[str], device: str = "auto", batch_size: str = "auto") -> Reading:
        """What it says of `texts`; arguments as `steer.evaluate.classifier.ByClassifier`."""
        found, cut = activations(self._model(device), texts, self.question, self.layer, batch_size)
        protocol = {
            "classifier": f"probe: {self.name} (a linear probe of {self.model['id']}, layer "
            f"{self.layer}, trained on {self.training['data']})",
            "probe": self.name,
            "fingerprint": self.model["fingerprint"],
            "texts": len(texts),
            "texts_cut": cut,
            "most_tokens": MAX_TOKENS,
        }
        return Reading(self.labels, self.classify(found), protocol)

    def probabilities(self, texts: Sequence[str], device: str = "auto") -> "Tensor":
        """[texts, 2], in the order of `labels`."""
        return self.read(texts, device).probabilities

    def classify(self, found: "Tensor") -> "Tensor":
        """Probabilities [texts, 2] of activations [texts, d_model]."""
        import torch

        weights = torch.tensor(self.coefficients, dtype=torch.float64)
        second = (found.double() @ weights + self.intercept).sigmoid().float()
        return torch.stack([1 - second, second], dim=1)

    def _model(self, device: str) -> "SteeredModel":
        from steer.models.facts import weight_fingerprint
        from steer.models.load import ModelSource

        model = ModelSource(model_name_or_path=self.model["id"], device=device, dtype="float32")
        read = model.load()
        found = weight_fingerprint(read.model)
        if found != self.model["fingerprint"]:
            raise ValueError(
                f"the probe {self.name!r} reads {self.model['id']} with weights "
                f"{self.model['fingerprint'][:12]}: got {str(found)[:12]}; train it anew with "
                "python -m steer.evaluate.probes.train"
            )
        return read


def activations(
    model: "SteeredModel",
    texts: Sequence[str],
    question: str,
    layer: int,
    batch_size: str = "auto",
) -> tuple["Tensor", int]:
    """What a probe reads of texts, [texts, d_model], and how many were cut to `MAX_TOKENS`."""
    import torch

    from steer.passages import Passage, passage_means

    tokenizer: Any = model.tokenizer
    end = tokenizer(question, add_special_tokens=False)["input_ids"]
    own = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    # The first token is an attention sink: it must not be one of the text's own.
    rows = [[model.first_token, *ids[:MAX_TOKENS], *end] for ids in own]
    passages = [Passage(row, len(row) - 1, len(row)) for row in rows]
    found = torch.zeros(len(rows), model.d_model)
    if rows:
        for batch in passage_means(model, passages, [layer], batch_size):
            found[batch.rows] = batch.means[layer].cpu()
    return found, sum(len(ids) > MAX_TOKENS for ids in own)
