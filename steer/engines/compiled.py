"""transformers with compiled decoding steps: the same interventions, a recipe of its own a row."""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, cast

import numpy as np
import torch
from transformers import DynamicCache

from steer.engines.recipes import Recipe, Room, acting, layout_of, name_of, size_of
from steer.models import Answer, SteeredModel
from steer.models.banks import ANY, NO_SLOT
from steer.models.batching import PASS_TOKENS, fixed_size, free_memory, out_of_memory
from steer.models.compiled import CompiledModel, Frame
from steer.models.generation import AUTO_BATCH, answer_of_ids, settings_of
from steer.models.interventions import EditTensor, Place, moved
from steer.models.next_token import NextTokens
from steer.models.request import Manner, Request, Row, unfollowed
from steer.models.slots import NOTHING, Layout, Line, joined
from steer.models.tally import CountedTally, Tally

log = logging.getLogger(__name__)

# Recipes that are in the graphs' buffers at once, and one for what is not steered.
SLOTS = 65
# New rows wait until there is room for this part of a batch, as a pass of its own reads them.
FREE_PART = 8
FEWEST_COLUMNS = 64


def layout_for(recipes: Sequence[Recipe], depth: int) -> Layout:
    """What graphs must be able to do for `recipes`, and for others like them at other layers."""
    asked = layout_of(recipes)
    vectors = [
        {0: stages}
        for place, stages in asked.items()
        if isinstance(place, int) and not any(ANY in stage for stage in stages)
    ]
    alike = reduce(joined, vectors, {0: [("add",)]})
    return joined(dict.fromkeys(range(depth), alike[0]), asked)


class CompiledEngine:
    """Answers with steps that are compiled once for a number of rows and a length.

    Vectors, strengths, layers, positions and which rows are steered change in the graphs' buffers.

    Args:
        model: Its weights are shared, and it is left as it is.
        layout: What can be steered, see `layout_for`; graphs are made for it.
        batch_size: Rows of a graph; `auto` suits the device and halves when memory runs out.
        backend: `torch.compile`'s.

    Raises:
        ValueError: A model that cannot be compiled this way.
    """

    def __init__(
        self,
        model: SteeredModel,
        layout: Layout,
        *,
        batch_size: int | str = "auto",
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self.model, self.layout = model, layout
        self.fixed = fixed_size(batch_size)
        self.size = self.fixed or AUTO_BATCH.get(model.device.type, AUTO_BATCH["cpu"])
        self.compiled = CompiledModel(model, layout, SLOTS, backend)
        self.room = Room(SLOTS - 1)
        self.frames: dict[tuple[int, int], Frame] = {}
        self._counted: dict[Place, CountedTally] = {}

    def fits(self, recipe: Recipe) -> bool:
        """Whether graphs made for this engine's layout can do `recipe`."""
        return joined(self.layout, layout_of([recipe])) == self.layout

    def batches(
        self,
        prompts: Sequence[Sequence[int]],
        params: dict[str, Any],
        recipes: Sequence[Recipe],
        seeds: Sequence[Sequence[int]],
        tally: Tally | None = None,
    ) -> Iterator[tuple[list[int], list[Answer]]]:
        """Yield `(rows, answers)` as they are finished.

        Args:
            prompts: Token ids of each row.
            params: For `transformers`' `generate`, over the model's own generation settings.
            recipes: What each row is steered by.
            seeds: Each row's, for sampling.
            tally: Filled with counts that were kept inside the graphs.

        Raises:
            ValueError: Parameters that cannot be followed, or positions that are a mask.
            RuntimeError: The graphs did not steer what they were to steer.
        """
        prompts = [list(prompt) or [self.model.first_token] for prompt in prompts]
        check_followed(self.model, params)
        config, limits = settings_of(self.model, prompts, params)
        manner = Manner.of(config, self.model)
        distinct = {id(recipe): acting(recipe) for recipe in recipes}
        rows = [
            Row(Request(row, prompt, limits[row], manner, distinct[id(recipe)], tuple(seed)))
            for row, (prompt, recipe, seed) in enumerate(zip(prompts, recipes, seeds, strict=True))
        ]
        longest = max((len(row.text) + row.request.limit for row in rows), default=0)
        frame = self._frame(len(rows), longest)
        # A run that was broken off may have left a pass half counted.
        self.compiled.forget_counts()
        self._counted = {}
        for done in _Run(self, frame, sorted(rows, key=lambda row: -len(row.text))):
            answers = [answer_of_ids(self.model, row.request.prompt, row.said) for row in done]
            yield [cast(int, row.request.key) for row in done], answers
        self.collect(list(self.room.sizes))
        for place, counted in self._counted.items():
            edits = [e.edit for recipe in distinct.values() for e in recipe if e.place == place]
            counted.gated = all(edit.gated for edit in edits)
        if tally is not None:
            tally |= self._counted

    def close(self) -> None:
        """Give the memory of graphs and caches back."""
        self.frames.clear()
        free_memory()

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
                self.compiled.book.remove(other)
                self.room.forget(other)
            self.compiled.book.add(name, [moved(edit, self.model.device) for edit in recipe])
            self.room.put(name, size_of(recipe))
        self.room.requests[name] += 1
        return self.compiled.book.lines[name]

    def release(self, name: str | None) -> None:
        """Note that a row of a recipe has ended."""
        if name is not None:
            self.room.requests[name] -= 1

    def collect(self, names: Sequence[str]) -> None:
        """Take note of what recipes did since the last time; the graphs count anew."""
        slots = [slot for name in names for slot in self.compiled.book.slots_of(name)]
        for place, (tokens, changed, ratio, passes) in self.compiled.taken(slots).items():
            if passes:
                counted = self._counted.setdefault(place, CountedTally())
                more = (int(tokens), int(changed), ratio)
                counted.add(CountedTally(passes=int(passes), sums=more))

    def _frame(self, wanted: int, longest: int) -> Frame:
        """A graph for as many rows as there is memory for, up to `wanted`."""
        columns = bucket(max(longest, FEWEST_COLUMNS))
        while True:
            rows = min(self.size, 1 << max(wanted - 1, 0).bit_length())
            if (rows, columns) in self.frames:
                return self.frames[rows, columns]
            try:
                return self.frames.setdefault(
                    (rows, columns), Frame(self.compiled, rows, columns)
                )
            except RuntimeError as error:
                if not out_of_memory(error) or (not self.frames and (self.fixed or rows == 1)):
                    raise
                # The memory of the others first.
                self.size = self.size if self.frames else rows // 2
                log.warning("out of memory for a graph of %d rows: going on with less", rows)
            self.close()


def bucket(tokens: int) -> int:
    """`tokens` rounded up, by a third at most where they are many: so that few graphs are made."""
    step = max(FEWEST_COLUMNS, 1 << max((tokens - 1).bit_length() - 2, 0))
    return -(-tokens // step) * step


def check_followed(model: SteeredModel, params: dict[str, Any]) -> None:
    """Raise a ValueError for generation parameters that compiled steps cannot follow."""
    if wrong := unfollowed(settings_of(model, [], params)[0]):
        raise ValueError(
            f"{', '.join(wrong)}: not possible with compile: true; leave it out, or set "
            "compile: false"
        )


class _Run:
    """The rows of one call: some wait, some are in the frame; iterating gives those that ended."""

    def __init__(self, engine: CompiledEngine, frame: Frame, rows: Sequence[Row]) -> None:
        self.engine, self.frame, self.model = engine, frame, engine.compiled
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
                self.engine.release(self._name(row))

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
            if self.engine.fixed or len(rows) == 1 or not out_of_memory(error):
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
            line = self.engine.admit(self._name(row), cast(Recipe, row.request.interventions))
            if line is None:
                break
            rows[number], self.lines[number] = self.waiting.popleft(), line
        return rows

    def _give_back(self, rows: dict[int, Row]) -> None:
        for row in reversed(rows.values()):
            self.engine.release(self._name(row))
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
            self.engine.release(self._name(row))
        return done
