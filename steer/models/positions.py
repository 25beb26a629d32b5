"""Which tokens of a row are steered, as values; and where each column of a pass stands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Tokens from `start` up to, not including, `stop`, counted from the first generated token.

    The prompt's last token is number -1, so neither padding nor a KV cache can shift a position.
    None is open: `Positions()` is every token.
    """

    start: int | None = None
    stop: int | None = None


EVERYWHERE = Positions()
PROMPT = Positions(stop=0)
FROM_PROMPT_END = Positions(start=-1)
GENERATED = Positions(start=0)
NOWHERE = Positions(start=0, stop=0)


@dataclass(frozen=True, eq=False)
class TokenMask:
    """Explicit choice: `mask` [rows, tokens], bool, over each row's own tokens from its first.

    Tokens behind the mask's end are not steered.
    """

    mask: Tensor


Where = Positions | TokenMask | Sequence[Positions]


@dataclass
class Pass:
    """Where the columns of the forward pass now running stand in their rows.

    Attributes:
        index: [batch, seq], number of each column's token in its row, from 0; below 0 is padding.
        prompt_lengths: [rows], tokens of each row's prompt; None where nobody said, then nothing
            can be relative to the prompt's end.
    """

    index: Tensor | None = None
    prompt_lengths: Tensor | None = None
    _bounds: dict[tuple[int, int, torch.device], Tensor] = field(default_factory=dict)

    def see(self, arguments: Mapping[str, Any]) -> None:
        """Take note of a decoder call; with a 2-D attention mask padding is known."""
        given = arguments.get("input_ids")
        columns = arguments["inputs_embeds"] if given is None else given
        width = columns.shape[1]
        mask, numbers = arguments.get("attention_mask"), arguments.get("position_ids")
        if isinstance(mask, Tensor) and mask.ndim == 2:
            # Masks hold ones and zeros; a padded column gets -1, whatever stands before it.
            counted = mask.long().cumsum(-1) - 1
            self.index = torch.where(mask.bool(), counted, -1)[:, -width:]
        elif isinstance(numbers, Tensor) and numbers.ndim == 2:
            self.index = numbers.expand(columns.shape[0], width)
        else:
            cache = arguments.get("past_key_values")
            seen = cache.get_seq_length() if cache is not None else 0
            self.index = torch.arange(seen, seen + width, device=columns.device)[None].expand(
                columns.shape[0], width
            )

    def numbers(self, like: Tensor) -> Tensor:
        """[batch, seq] of `index`, on the device of `like`, for its columns.

        The head may be given the last columns of a pass only.
        """
        assert self.index is not None
        return self.index[:, -like.shape[1] :].to(like.device)

    def real(self, like: Tensor) -> Tensor:
        """[batch, seq], bool, on the device of `like`: the columns that hold a token."""
        return self.numbers(like) >= 0

    def chosen(self, where: Where, like: Tensor) -> Tensor | None:
        """[batch, seq], bool: the columns that `where` names; None for every one.

        Raises:
            ValueError: `where` is relative to the prompt, or per row, and the pass cannot say.
        """
        if where == EVERYWHERE:
            return None
        index = self.numbers(like)
        if isinstance(where, TokenMask):
            mask = for_batch(where.mask.to(like.device), len(index)).expand(len(index), -1)
            inside = (index >= 0) & (index < mask.shape[1])
            return inside & mask.gather(1, index.clamp(0, mask.shape[1] - 1))
        if self.prompt_lengths is None:
            raise ValueError(
                "steering relative to the prompt's end needs `prompt_lengths`: "
                "give them to `steering(prompt_lengths=...)`, or use `generate`"
            )
        lengths = for_batch(self.prompt_lengths.to(like.device), len(index))
        relative = index - lengths[:, None]
        # Made once for the passes of a generation: a GPU waits for numbers that come from here.
        key = (id(where), len(index), like.device)
        if key not in self._bounds:
            self._bounds[key] = _bounds(where, len(index), like.device)
        start, stop = self._bounds[key]
        return (index >= 0) & (relative >= start) & (relative < stop)


def masked(where: Where, prompt: int, tokens: int) -> Where:
    """The tokens that `where` names in rows whose prompt has `prompt` tokens, whatever passes say.

    Args:
        where: The same for all rows.
        prompt: At least one.
        tokens: Of the longest row.

    Raises:
        ValueError: `where` differs from row to row.
    """
    index = torch.arange(tokens)[None]
    chosen = Pass(index, torch.tensor([prompt])).chosen(where, index)
    return where if chosen is None else TokenMask(chosen)


def _bounds(where: Positions | Sequence[Positions], batch: int, device: torch.device) -> Tensor:
    each = [where] if isinstance(where, Positions) else where
    far = torch.iinfo(torch.int64).max // 2
    starts = [-far if p.start is None else p.start for p in each]
    stops = [far if p.stop is None else p.stop for p in each]
    bounds = torch.tensor([starts, stops], device=device)
    return torch.stack([for_batch(bound, batch)[:, None] for bound in bounds])


def for_batch(rows: Tensor, batch: int) -> Tensor:
    """Repeat each row for the beams that generation made of it."""
    if len(rows) in (1, batch):
        return rows
    if batch % len(rows):
        raise ValueError(f"steering is given for {len(rows)} rows, the batch has {batch}")
    return rows.repeat_interleave(batch // len(rows), dim=0)
