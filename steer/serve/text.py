"""An answer's text as its tokens come."""

from collections.abc import Sequence
from typing import Any

# What a tokenizer gives for a character of which it has not seen every byte.
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


class AnswerText:
    """Turns one answer's tokens into text, and knows where it ends.

    Attributes:
        tokens: End-of-text tokens.
        finish: `stop` once an end-of-text token or a stop string has come; else None.
    """

    def __init__(self, tokenizer: Any, tokens: set[int], stops: Sequence[str]) -> None:
        self.tokens = tokens
        self.finish: str | None = None
        self._tokenizer, self._stops = tokenizer, stops
        self._text = ""
        self._given = 0
        self._is_cut = False
        self._ids: list[int] = []
        # Ids before `_read` are in `_text`; those from `_start` on are decoded with what follows,
        # as a token's text may depend on those before it.
        self._start = self._read = 0

    def reached(self, prompt: list[int], new: list[int]) -> bool:  # noqa: ARG002
        """Whether the answer ends with the last token of `new`; asked once for each token."""
        self._ids.append(new[-1])
        before = self._decoded(self._ids[self._start : self._read])
        text = self._decoded(self._ids[self._start :])
        if not text.endswith(UNFINISHED):
            self._text += text[len(before) :]
            self._start, self._read = self._read, len(self._ids)
        found = [self._text.find(stop, self._given) for stop in self._stops]
        places = [place for place in found if place >= 0]
        self._is_cut = bool(places)
        if places:
            self._text = self._text[: min(places)]
        if places or new[-1] in self.tokens:
            self.finish = "stop"
        return self.finish is not None

    def taken(self, *, over: bool) -> str:
        """What is new since the last time; unless `over`, without what may begin a stop string."""
        if over and not self._is_cut:
            self._text += self._rest()
        end = len(self._text) - (0 if over else self._held())
        new, self._given = self._text[self._given : end], max(end, self._given)
        return new

    def _rest(self) -> str:
        """What was kept back because its last character is not whole."""
        before = self._decoded(self._ids[self._start : self._read])
        return self._decoded(self._ids[self._start :])[len(before) :]

    def _held(self) -> int:
        """Characters at the end that are the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        lengths = range(min(longest, len(self._text) - self._given), 0, -1)
        ends = (n for n in lengths if any(s.startswith(self._text[-n:]) for s in self._stops))
        return next(ends, 0)

    def _decoded(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
