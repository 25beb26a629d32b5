"""The loss of learning what is done to the language model head, and its gradient.

It is the mean cross-entropy of tokens given what is before them. Nothing below the head depends on
what is learnt: the last block's output at the tokens that are scored is computed once, kept where
it fits, and a step costs the head alone. The head runs inside the model, behind replayed blocks,
so that what a model does to its logits (soft-capping, scaling) is learnt with.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from steer.models import EditTensor, SteeredModel
from steer.models.batching import padded, run_passes
from steer.models.hooks import replaying
from steer.models.prefix import attention_span, prefix_cache, repeated, shared_length
from steer.progress import progress

# For logits, their log-softmax and gradients: some 4 float32 for each token and vocabulary entry.
HEAD_BYTES = 2**29


@dataclass(frozen=True)
class Example:
    """A text to learn.

    Attributes:
        ids: Its tokens.
        start: The first that is scored, 1 at least.
        steers: The steer values that it is to be written under.
    """

    ids: list[int]
    start: int
    steers: list[float]


@dataclass(frozen=True)
class Scored:
    """Tokens to score.

    Attributes:
        hidden: [tokens, d], the last block's output at the token before each.
        targets: [tokens], their ids.
        steers: [tokens, steers], the steer values of each.
    """

    hidden: Tensor
    targets: Tensor
    steers: Tensor

    def parts(self, most: int) -> Iterator["Scored"]:
        """The same in parts of `most` tokens."""
        fields = (self.hidden, self.targets, self.steers)
        for part in zip(*(each.split(most) for each in fields), strict=True):
            yield Scored(*part)


class Answers:
    """The scored tokens of examples, each from `start` to its end.

    Args:
        model: Read unsteered.
        examples: At least one.
        often: The examples that are needed more than once, if any are.
        most_bytes: Hidden states are kept where those of `often` need no more.
    """

    def __init__(
        self,
        model: SteeredModel,
        examples: Sequence[Example],
        often: Sequence[int] = (),
        most_bytes: int = 0,
    ) -> None:
        self.model, self.examples = model, examples
        before = [example.ids[: example.start - 1] for example in examples]
        self._shared = shared_length(before) if attention_span(model) else 0
        self._cache = prefix_cache(model, examples[0].ids[: self._shared])
        self._kept: dict[int, Tensor] = {}
        tokens = sum(len(examples[n].ids) - examples[n].start for n in often)
        if 0 < tokens * model.d_model * model.model.dtype.itemsize <= most_bytes:
            with progress(total=len(often), what="reading hidden states", unit="text") as bar:
                for number, hidden in self._read(often):
                    self._kept[number] = hidden
                    bar.update()

    def __call__(self, numbers: Sequence[int]) -> Scored:
        """The tokens of the examples `numbers`."""
        read = dict(self._read([n for n in numbers if n not in self._kept]))
        hidden = torch.cat([read[n] if n in read else self._kept[n] for n in numbers])
        chosen = [self.examples[n] for n in numbers]
        targets = [token for e in chosen for token in e.ids[e.start :]]
        steers = [e.steers for e in chosen for _ in e.ids[e.start :]]
        device = hidden.device
        return Scored(
            hidden, torch.tensor(targets, device=device), torch.tensor(steers, device=device)
        )

    def _read(self, numbers: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        chosen = [self.examples[n] for n in numbers]
        last = self.model.depth - 1

        def run(rows: list[int]) -> Tensor:
            # Padding on the right is behind all that is read: causal attention needs no mask.
            texts = [chosen[row].ids[self._shared : -1] for row in rows]
            inputs: dict[str, Any] = {
                "input_ids": padded(texts, texts[0][-1], "right", self.model.device)[0]
            }
            if self._cache is not None:
                inputs["past_key_values"] = repeated(self._cache, len(rows))
            return self.model.read(inputs, [last])[last]

        lengths = [len(example.ids) - 1 - self._shared for example in chosen]
        for rows, hidden in run_passes(lengths, "auto", self.model.device, run):
            for row, one in zip(rows, hidden, strict=True):
                start = chosen[row].start - 1 - self._shared
                # A copy of its own, and one that autograd may keep.
                yield numbers[row], one[start : lengths[row]].clone()


class PaddedTexts:
    """Every token but the first of left-padded batches, padding included: EasyEdit2's way."""

    def __init__(self, model: SteeredModel, examples: Sequence[Example]) -> None:
        self.model, self.examples = model, examples

    def __call__(self, numbers: Sequence[int]) -> Scored:
        """The tokens of the examples `numbers` as one batch."""
        chosen = [self.examples[n] for n in numbers]
        fill = cast(Any, self.model.tokenizer).pad_token_id
        fill = self.model.first_token if fill is None else fill
        ids, mask = padded([e.ids for e in chosen], fill, "left", self.model.device)
        last = self.model.depth - 1
        hidden = self.model.read({"input_ids": ids, "attention_mask": mask}, [last])[last]
        steers = torch.tensor([e.steers for e in chosen], device=hidden.device)
        return Scored(
            hidden[:, :-1].flatten(0, 1).clone(),
            ids[:, 1:].flatten().to(hidden.device),
            steers.repeat_interleave(ids.shape[1] - 1, dim=0),
        )


@dataclass(frozen=True)
class HeadLoss:
    """Mean cross-entropy of the next tokens; `regularization` times the sum of squares is added.

    Attributes:
        model: Left as it is.
        tokens: The tokens of the examples of those numbers.
        edit: What is done to the head under parameters and steer values [rows, steers].
        regularization: 0 is none.
        half: Whether the head runs in bfloat16.
    """

    model: SteeredModel
    tokens: Callable[[Sequence[int]], Scored]
    edit: Callable[[Mapping[str, Tensor], Tensor], EditTensor]
    regularization: float = 0.0
    half: bool = False

    def __call__(
        self, params: Mapping[str, Tensor], numbers: Sequence[int]
    ) -> tuple[float, list[Tensor], int]:
        """Cross-entropy, the sum's gradient in each of `params`, how many tokens were scored."""
        scored = self.tokens(numbers)
        total, loss = len(scored.targets), 0.0
        grads = [torch.zeros_like(p) for p in params.values()]
        for part in scored.parts(max(1, HEAD_BYTES // (16 * vocabulary(self.model)))):
            share = len(part.targets) / total
            squares = torch.stack([p.square().sum() for p in params.values()]).sum()
            entropy = self._entropy(params, part) / total
            value = entropy + share * self.regularization * squares
            found = torch.autograd.grad(value, list(params.values()), materialize_grads=True)
            loss += float(entropy.detach())
            for grad, more in zip(grads, found, strict=True):
                grad += more
        return loss, grads, total

    def _entropy(self, params: Mapping[str, Tensor], scored: Scored) -> Tensor:
        # Each token is a row: it has steer values of its own, and no position can run out.
        hidden, step = scored.hidden[:, None], self.edit(params, scored.steers)
        device = self.model.device
        inputs = {"input_ids": scored.targets[:, None].to(device)}
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.half),
            replaying(list(self.model.blocks), hidden),
            self.model.steering([step]),
        ):
            logits = cast(Any, self.model.model)(**inputs, use_cache=False).logits[:, 0]
        targets = scored.targets.to(logits.device)
        return functional.cross_entropy(logits.float(), targets, reduction="sum")


def vocabulary(model: SteeredModel) -> int:
    """How many logits the head gives."""
    return cast(Any, model.head).out_features
