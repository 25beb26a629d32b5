"""The rows of compiled steps: some wait, some are under way, each with a recipe of its own."""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from transformers import DynamicCache

from steer.engines.recipes import Recipe, Room, name_of, size_of
from steer.models.banks import NO_SLOT
from steer.models.batching import PASS_TOKENS, free_memory, out_of_memory
from steer.models.compiled import CompiledModel, Frame
from steer.models.continuous import FREE_PART
from steer.models.interventions import Place, moved
from steer.models.next_token import NextTokens
from steer.models.request import Row
from steer.models.slots import NOTHING, Line
from steer.models.tally import CountedTally

log = logging.getLogger(__name__)


class Admission:
    """Which recipes are in the slots of a compiled model, and what they did.

    Attributes:
        counted: By place, since `begin_anew`.
    """

    def __init__(self, model: CompiledModel) -> None:
        self.model = model
        self.room = Room(model.book.size - 1)
        self.counted: dict[Place, CountedTally] = {}

    def begin_anew(self) -> None:
        """Forget what was counted: a run that was broken off may have left a pass half counted."""
        self.model.forget_counts()
        self.counted = {}

    def admit(self, name: str | None, recipe: Recipe) -> Line | None:
        """The slots along a row of a recipe; None where it must wait for other rows to end."""
        if name is None:
            return NOTHING
        if name not in self.room.sizes:
            leaving = self.room.leaving_for(size_of(recipe))
            if leaving is None:
                return None
            self.collect(leaving)
            for other in leaving:
                self.model.book.remove(other)
                self.room.forget(other)
            self.model.book.add(name, [moved(edit, self.model.device) for edit in recipe])
            self.room.put(name, size_of(recipe))
        self.room.requests[name] += 1
        return self.model.book.lines[name]

    def release(self, name: str | None) -> None:
        """Note that a row of a recipe has ended."""
        if name is not None:
            self.room.requests[name] -= 1

    def collect(self, names: Sequence[str] | None = None) -> None:
        """Take note of what recipes, or all, did since the last time; the graphs count anew."""
        chosen = self.room.sizes if names is None else names
        slots = [slot for name in chosen for slot in self.model.book.slots_of(name)]
        for place, (tokens, changed, ratio, passes) in self.model.taken(slots).items():
            # Passes may have been taken before, for another recipe.
            if tokens or passes:
                counted = self.counted.setdefault(place, CountedTally())
                more = (int(tokens), int(changed), ratio)
                counted.add(CountedTally(passes=int(passes), sums=more))


class Rows:
    """The rows of one call; iterating says their answers and gives the rows that are over.

    Args:
        admission: Of the recipes.
        frame: The graph, in which no row is under way.
        rows: The next one first.
        fixed: Whether running out of memory is an error; else fewer prompts are read at once.
    """

    def __init__(
        self, admission: Admission, frame: Frame, rows: Sequence[Row], *, fixed: bool
    ) -> None:
        self.admission, self.frame, self.model = admission, frame, admission.model
        self.fixed = fixed
        self.waiting = deque(rows)
        self.running: dict[int, Row] = {}
        self.lines: dict[int, Line] = {}
        distinct = {id(r.request.interventions): r.request.interventions for r in rows}
        self.names = {n: name_of(cast(Recipe, recipe)) for n, recipe in distinct.items()}
        self.most = frame.rows  # rows that a pass of prompts may have
        self.slots = np.full((frame.rows, 1), NO_SLOT)
        self.placed: np.ndarray | None = None
        self.choose: tuple[torch.Tensor, NextTokens] | None = None

    def __iter__(self) -> Iterator[list[Row]]:
        try:
            while self.waiting or self.running:
                done = self._begin() if self._may_begin() else None
                done = self._continue() if done is None else done
                if done:
                    yield done
        finally:
            # A caller may stop early: the next call finds every row vacant.
            self.frame.lengths.zero_()
            for row in self.running.values():
                self.admission.release(self._name(row))

    def _name(self, row: Row) -> str | None:
        return self.names[id(row.request.interventions)]

    def _may_begin(self) -> bool:
        free = self.frame.rows - len(self.running)
        wanted = min(max(self.frame.rows // FREE_PART, 1), len(self.waiting))
        return free >= wanted > 0

    def _begin(self) -> list[Row] | None:
        """Read new rows in a pass of their own; None where their recipes must wait."""
        rows = self._admitted()
        if not rows:
            return None
        prompts = [row.text for row in rows.values()]
        width = max(map(len, prompts))
        slots = np.full((len(rows), width), NO_SLOT)
        for part, (number, prompt) in zip(slots, zip(rows, prompts, strict=True), strict=True):
            part[width - len(prompt) :] = self.lines[number].at(-len(prompt), len(prompt))
        cache = DynamicCache(config=self.model.twin.model.config)
        self.placed = None
        try:
            logits = self.model.read(prompts, slots, cache)
        except RuntimeError as error:
            self._give_back(rows)
            if self.fixed or len(rows) == 1 or not out_of_memory(error):
                raise
            self.most = len(rows) // 2
            log.warning("out of memory with %d prompts: going on with %d", len(rows), self.most)
        else:
            return self._enter(rows, cache, logits)
        free_memory()
        return []

    def _admitted(self) -> dict[int, Row]:
        """Waiting rows that have a place now, by it."""
        most = PASS_TOKENS.get(self.model.device.type, PASS_TOKENS["cpu"])
        free = [number for number in range(self.frame.rows) if number not in self.running]
        rows: dict[int, Row] = {}
        for number in free[: self.most]:
            if not self.waiting:
                break
            row = self.waiting[0]
            longest = max(len(one.text) for one in [*rows.values(), row])
            if rows and longest * (len(rows) + 1) > most:
                break
            line = self.admission.admit(self._name(row), cast(Recipe, row.request.interventions))
            if line is None:
                break
            rows[number], self.lines[number] = self.waiting.popleft(), line
        return rows

    def _give_back(self, rows: dict[int, Row]) -> None:
        for row in reversed(rows.values()):
            self.admission.release(self._name(row))
            self.waiting.appendleft(row)

    def _enter(self, rows: dict[int, Row], cache: DynamicCache, logits: torch.Tensor) -> list[Row]:
        """Let rows whose prompts have been read say their first tokens."""
        device = self.model.device
        numbers = torch.tensor(list(rows), device=device)
        lengths = torch.tensor([len(row.text) for row in rows.values()], device=device)
        self.frame.cache.put(numbers, cache, lengths)
        tokens = NextTokens(list(rows.values()), device)(logits)
        self.frame.tokens[numbers] = tokens
        self.running |= rows
        self.choose = None
        return self._say(list(rows), tokens.tolist())

    def _continue(self) -> list[Row]:
        """Say a token in each row."""
        for number, row in self.running.items():
            line, token = self.lines[number], len(row.said) - 1
            if self.placed is None or token in line.breaks:
                self.slots[number] = line.at(token, 1)
        if self.placed is None or not np.array_equal(self.placed, self.slots):
            self.placed = self.slots.copy()
            self.model.place(self.slots)
        self.frame.step()
        self.model.expect(self.slots)
        return self._say(list(self.running), self._chosen())

    def _chosen(self) -> list[int]:
        """The next tokens of the rows under way; in the frame, to be read, as well."""
        rows = list(self.running.values())
        manner = rows[0].request.manner
        early = any(len(row.said) < manner.min_new for row in rows)
        if manner.warpers is None and manner.penalty == 1 and not early:
            tokens = self.frame.tokens.tolist()
            return [tokens[number] for number in self.running]
        if self.choose is None:
            numbers = torch.tensor(list(self.running), device=self.model.device)
            self.choose = numbers, NextTokens(rows, self.model.device)
        numbers, choose = self.choose
        tokens = choose(self.frame.logits[numbers])
        self.frame.tokens[numbers] = tokens
        return tokens.tolist()

    def _say(self, numbers: list[int], tokens: list[int]) -> list[Row]:
        """Note each row's new token; rows that are over leave."""
        over = [n for n, t in zip(numbers, tokens, strict=True) if self.running[n].say(t)]
        if over:
            self.frame.lengths[over] = 0
            self.slots[over] = NO_SLOT
            self.choose = None
        done = [self.running.pop(number) for number in over]
        for row in done:
            self.admission.release(self._name(row))
        return done
