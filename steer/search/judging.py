"""What settings do to held-out pairs and to neutral text, many settings at once."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from steer.datasets import DatasetLoader, Row
from steer.effect import Pair, pairs_of
from steer.judging import NEUTRAL
from steer.models import ChatFormat, SteeredModel
from steer.search.passes import Setting, Sweep, kl_sum, log_likelihood
from steer.search.store import Store

# Settings that are computed before any of them is on disk.
AT_ONCE = 16


class Judge:
    """Judges settings by pairs, and by text that should not change.

    Args:
        model: What is in force on it does not count.
        rows: Contrastive pairs.
        texts: Neutral ones.
        chat: How questions are put.
        store: Keeps what is found.
        part: Names this judge's values there.
        batch_size: Rows in a pass.
    """

    def __init__(
        self,
        model: SteeredModel,
        rows: Sequence[Row],
        texts: Sequence[str],
        chat: ChatFormat,
        store: Store,
        part: str,
        batch_size: str = "auto",
    ) -> None:
        self.model, self.store, self.part, self.batch_size = model, store, part, batch_size
        self.pairs: list[Pair] = pairs_of(model, rows, chat)
        tokenizer: Any = model.tokenizer
        self.texts: list[list[int]] = [tokenizer(text)["input_ids"] for text in texts]

    def margins(self, pairs: Sequence[Pair], settings: Sequence[Setting]) -> Tensor:
        """Log P(matching) - log P(not_matching), [1 + settings, pairs]; the first unsteered."""
        prompts = [pair.prompt for pair in pairs]
        answers = [pair.matching for pair in pairs] + [pair.not_matching for pair in pairs]
        sweep = Sweep(self.model, prompts * 2, answers, self.batch_size)
        matching, not_matching = sweep.run(settings, log_likelihood).chunk(2, dim=1)
        return matching - not_matching

    def changes(
        self, names: Sequence[str], settings: Sequence[Setting], first: int, last: int
    ) -> list[list[float]]:
        """The change of the margin of pairs `first` to `last` - 1 that each setting makes."""

        def changed(chosen: Sequence[Setting]) -> Tensor:
            margins = self.margins(self.pairs[first:last], chosen)
            return margins[1:] - margins[0]

        return self._stored(f"{self.part} changes {first}-{last}", names, settings, changed)

    def divergences(
        self, names: Sequence[str], settings: Sequence[Setting], first: int, last: int
    ) -> list[float]:
        """KL(unsteered || steered) summed over all tokens of texts `first` to `last` - 1."""
        texts = self.texts[first:last]
        sweep = partial(Sweep, self.model, [ids[:1] for ids in texts], [ids[1:] for ids in texts])

        def diverged(chosen: Sequence[Setting]) -> Tensor:
            return sweep(self.batch_size).run(chosen, kl_sum)[1:].sum(1, keepdim=True)

        name = f"{self.part} KL {first}-{last}"
        return [sum(value) for value in self._stored(name, names, settings, diverged)]

    def tokens(self, first: int, last: int) -> int:
        """How many predictions `divergences` sums over."""
        return sum(map(len, self.texts[first:last]))

    def _stored(
        self, kind: str, names: Sequence[str], settings: Sequence[Setting], compute: Any
    ) -> list[list[float]]:
        def found(missing: list[int]) -> Iterable[tuple[int, list[float]]]:
            for start in range(0, len(missing), AT_ONCE):
                chosen = missing[start : start + AT_ONCE]
                values = compute([settings[place] for place in chosen])
                yield from zip(chosen, values.tolist(), strict=True)

        return self.store.many(kind, names, found)


def neutral_texts() -> list[str]:
    """Those that come with the project, wherever the user's own data is."""
    return [str(row["text"]) for row in DatasetLoader().load_file(NEUTRAL, "valid")]
