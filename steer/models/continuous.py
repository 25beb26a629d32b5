"""Answers whose rows come and go: a finished row's place is taken by the next request at once."""

import logging
from collections import deque
from collections.abc import Hashable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from steer.models.batching import PASS_TOKENS, free_memory, out_of_memory, padded
from steer.models.column_cache import ColumnCache
from steer.models.gates import settled
from steer.models.next_token import NextTokens
from steer.models.request import Request, Row
from steer.models.row_steering import join_rows
from steer.models.steered_model import SteeredModel
from steer.models.tally import Tally, merge

log = logging.getLogger(__name__)

# New rows wait until there is room for this part of a batch, as a pass of its own reads them.
FREE_PART = 8
# A CPU loses less by that pass than by vacant rows: products with 9 to 15 rows take it longer than
# with 16 (MKL, float32).
FREE_PART_OF = {"cpu": 16}


@dataclass(frozen=True)
class NewToken:
    """What a step gave one request.

    Attributes:
        key: The request's.
        token: The new one.
        answer: All its tokens, where this is the last; else None.
        tally: The counts of this request alone, where asked for; whole with the last token.
    """

    key: Hashable
    token: int
    answer: list[int] | None
    tally: Tally


@dataclass
class _Batch:
    """What holds until a row comes or goes; `tokens` and `lengths` are [rows]."""

    choose: NextTokens
    tokens: Tensor
    lengths: Tensor
    hooks: ExitStack
    tally: Tally | None
    passes: int = field(default=0)


class ContinuousDecoder:
    """Makes answers token by token; requests may be added at any time.

    `add` and `cancel` may be called by any thread, the rest by one. Between steps the hooks of the
    requests under way may be open: call `pause` before the model is used for anything else.

    Attributes:
        rows: Most requests under way; fewer once memory has run out.
        waiting: Requests that are not under way yet, the next one first.
        running: Requests under way, by row.
    """

    def __init__(
        self,
        model: SteeredModel,
        rows: int,
        *,
        fixed: bool = False,
        tally: Tally | None = None,
        apart: bool = False,
    ) -> None:
        """A decoder without requests.

        Args:
            model: What is in force on it does not act: each request brings its own.
            rows: As above.
            fixed: Whether running out of memory is an error; else rows are halved, with a warning.
            tally: Filled with counts of each steered place.
            apart: Whether each request's counts are kept too, see `NewToken`.
        """
        self.model, self.rows, self.fixed = model, rows, fixed
        self.tally, self.apart = tally, apart
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self._cancelled: deque[Hashable] = deque()
        self._tried = 0  # rows that the latest pass needed memory for
        self._cache = ColumnCache(model.model.config)
        self._batch: _Batch | None = None
        self._options = {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {}
        self._numbered = model.accepts("position_ids")

    def add(self, request: Request) -> None:
        """Let `request` wait for a row."""
        self.waiting.append(Row(request))

    def cancel(self, key: Hashable) -> None:
        """Forget a request, at the next step; one that is over already is no error."""
        self._cancelled.append(key)

    @property
    def busy(self) -> bool:
        """Whether a request waits or is under way."""
        return bool(self.waiting or self.running)

    @torch.inference_mode()
    def step(self) -> list[NewToken]:
        """Read the prompts of some waiting requests, or say one token in each that is under way.

        Raises:
            RuntimeError: Memory ran out, and there is nothing left to halve.
        """
        self._forget_cancelled()
        try:
            if self._may_begin():
                return self._begin()
            return self._continue() if self.running else []
        except RuntimeError as error:
            self._begin_again()
            if self.fixed or self._tried == 1 or not out_of_memory(error):
                raise
            self._halve()
        except BaseException:
            self._begin_again()
            raise
        free_memory()
        return []

    def pause(self) -> None:
        """Close the hooks; the next step opens them again."""
        batch, self._batch = self._batch, None
        if batch is None:
            return
        batch.hooks.close()
        for counts in (batch.tally or {}).values():
            # A pass that failed is made again.
            counts.first_passes(batch.passes)
        self._note(self.running, batch.tally)

    def _may_begin(self) -> bool:
        free = self.rows - len(self.running)
        part = self.rows // FREE_PART_OF.get(self.model.device.type, FREE_PART)
        return free > 0 and free >= min(max(part, 1), len(self.waiting)) > 0

    def _begin(self) -> list[NewToken]:
        """Read new rows in a pass of their own."""
        self.pause()
        rows = self._next()
        self._tried = len(self.running) + len(rows)
        device = self.model.device
        ids, mask = padded([row.text for row in rows], 0, "left", device)
        cache = DynamicCache(config=self.model.model.config)
        counts = self._counts()
        with self._steering(rows, counts) as decisions:
            logits = self._logits(ids, mask, cache)
        self._cache.append(cache, ids.shape[1])
        tokens = NextTokens(rows, device)(logits).tolist()
        for place in (counts or {}).values():
            # What was read again because memory ran out has been counted.
            place.begin_at(torch.tensor([row.read for row in rows]))
        self._note(rows, counts)
        for number, row in enumerate(rows):
            self.waiting.popleft()
            row.read = len(row.text)
            row.steering = settled(row.steering, decisions, number)
        self.running += rows
        return self._say(rows, tokens)

    def _next(self) -> list[Row]:
        """The waiting rows that a pass may read, in their order; one at least."""
        most = PASS_TOKENS.get(self.model.device.type, PASS_TOKENS["cpu"])
        rows: list[Row] = []
        for number in range(len(self.waiting)):  # others may add meanwhile
            row = self.waiting[number]
            longest = max(len(one.text) for one in [*rows, row])
            full = len(rows) == self.rows - len(self.running)
            if full or (rows and longest * (len(rows) + 1) > most):
                break
            rows.append(row)
        return rows

    def _continue(self) -> list[NewToken]:
        """Say a token in each row."""
        if self._batch is None:
            self._batch = self._opened()
        batch, cache = self._batch, self._cache
        self._tried = len(self.running)
        cache.prepare()
        logits = self._logits(batch.tokens[:, None], cache.mask(batch.lengths), cache)
        batch.tokens = batch.choose(logits)
        tokens = batch.tokens.tolist()
        batch.lengths = batch.lengths + 1
        batch.passes += 1
        cache.advance()
        for row in self.running:
            row.read += 1
        return self._say(list(self.running), tokens)

    def _opened(self) -> _Batch:
        rows, device = list(self.running), self.model.device
        counts, hooks = self._counts(), ExitStack()
        hooks.enter_context(self._steering(rows, counts))
        tokens = torch.tensor([row.said[-1] for row in rows], device=device)
        lengths = torch.tensor([row.read for row in rows], device=device)
        return _Batch(NextTokens(rows, device), tokens, lengths, hooks, counts)

    def _counts(self) -> Tally | None:
        return {} if self.apart or self.tally is not None else None

    def _note(self, rows: list[Row], counts: Tally | None) -> None:
        """Add up what was counted while `rows` were the batch."""
        if self.tally is not None and counts:
            merge(self.tally, counts)
        for place, counted in (counts or {}).items() if self.apart else ():
            for row, own in zip(rows, counted.by_row(), strict=False):
                if any(place == getattr(i, "place", None) for i in row.request.interventions):
                    merge(row.tally, {place: own})

    def _steering(self, rows: list[Row], counts: Tally | None) -> Any:
        joined = join_rows([row.steering for row in rows])
        lengths = torch.tensor([len(row.request.prompt) for row in rows])
        lengths = lengths.to(self.model.device)
        return self.model.steering(joined, prompt_lengths=lengths, tally=counts)

    def _logits(self, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """The last column's, [rows, vocab]."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, **self._options}
        if self._numbered:
            numbers = (mask.cumsum(dim=-1) - 1).clamp_min(0)
            inputs["position_ids"] = numbers[:, -ids.shape[1] :]
        return self.model.model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]

    def _say(self, rows: list[Row], tokens: list[int]) -> list[NewToken]:
        """Note each row's new token; rows that are over make room."""
        given, over = [], []
        for row, token in zip(rows, tokens, strict=True):
            ended = row.say(token)
            over += [row] if ended else []
            answer = row.said if ended else None
            given.append(NewToken(row.request.key, token, answer, row.tally))
        self._remove(over)
        return given

    def _remove(self, over: list[Row]) -> None:
        if over:
            self.pause()
        for row in over:
            number = self.running.index(row)
            self.running[number] = self.running[-1]
            self.running.pop()
            self._cache.remove(number, max((one.read for one in self.running), default=0))

    def _forget_cancelled(self) -> None:
        keys = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if keys:
            self._remove([row for row in self.running if row.request.key in keys])
            # Others may add meanwhile: what is kept goes round once.
            for _ in range(len(self.waiting)):
                row = self.waiting.popleft()
                if row.request.key not in keys:
                    self.waiting.append(row)

    def _begin_again(self) -> None:
        """Let what was under way be read again, answers so far included.

        A pass that failed may have left rows in the cache that are nobody's.
        """
        self.pause()
        self.waiting.extendleft(reversed(self.running))
        self.running = []
        self._cache.clear()

    def _halve(self) -> None:
        """Go on with fewer rows."""
        self.rows = self._tried // 2
        log.warning("out of memory with %d rows: going on with %d", self._tried, self.rows)
