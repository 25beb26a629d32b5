"""transformers with compiled decoding steps: the same interventions, a recipe of its own a row."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, cast

from transformers import GenerationConfig

from steer.engines.compiled_rows import Admission, Rows
from steer.engines.recipes import Recipe, acting, layout_of
from steer.models import Answer, SteeredModel
from steer.models.banks import ANY
from steer.models.batching import fixed_size, free_memory, out_of_memory
from steer.models.compiled import CompiledModel, Frame
from steer.models.generation import AUTO_BATCH, answer_of_ids, settings_of
from steer.models.request import Manner, Request, Row, unfollowed
from steer.models.slots import Layout, along, joined
from steer.models.tally import Tally

log = logging.getLogger(__name__)

# Recipes that are in the graphs' buffers at once, and one for what is not steered.
SLOTS = 65
FEWEST_COLUMNS = 64


def layout_for(recipes: Sequence[Recipe], depth: int) -> Layout:
    """What graphs must be able to do for `recipes`, and for others like them at other layers."""
    asked = layout_of(recipes)
    vectors: list[Layout] = [
        {0: stages}
        for place, stages in asked.items()
        if isinstance(place, int) and not any(ANY in stage for stage in stages)
    ]
    least: Layout = {0: [("add",)]}
    alike = reduce(joined, vectors, least)
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
        self.admission = Admission(self.compiled)
        self.frames: dict[tuple[int, int], Frame] = {}

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
        texts = [list(prompt) or [self.model.first_token] for prompt in prompts]
        config, limits = settings_of(self.model, texts, params)
        check_followed(config)
        manner = Manner.of(config, self.model)
        distinct = {id(recipe): acting(recipe) for recipe in recipes}
        for recipe in distinct.values():
            along(recipe)  # says what is no range of positions
        rows = [
            Row(Request(row, prompt, limits[row], manner, distinct[id(recipe)], tuple(seed)))
            for row, (prompt, recipe, seed) in enumerate(zip(texts, recipes, seeds, strict=True))
        ]
        longest = max((len(row.text) + row.request.limit for row in rows), default=0)
        frame = self._frame(len(rows), longest)
        self.admission.begin_anew()
        rows.sort(key=lambda row: -len(row.text))
        for done in Rows(self.admission, frame, rows, fixed=self.fixed is not None):
            answers = [answer_of_ids(self.model, row.request.prompt, row.said) for row in done]
            yield [cast(int, row.request.key) for row in done], answers
        self.admission.collect()
        counts = self.admission.counted
        for place, counted in counts.items():
            edits = [e.edit for recipe in distinct.values() for e in recipe if e.place == place]
            counted.gated = all(edit.gated for edit in edits)
        if tally is not None:
            tally |= counts

    def close(self) -> None:
        """Give the memory of graphs and caches back."""
        self.frames.clear()
        free_memory()

    def _frame(self, wanted: int, longest: int) -> Frame:
        """A graph for as many rows as there is memory for, up to `wanted`."""
        columns = bucket(max(longest, FEWEST_COLUMNS))
        while True:
            rows = min(self.size, 1 << max(wanted - 1, 0).bit_length())
            if (rows, columns) in self.frames:
                return self.frames[rows, columns]
            try:
                return self.frames.setdefault((rows, columns), Frame(self.compiled, rows, columns))
            except RuntimeError as error:
                if not out_of_memory(error) or (not self.frames and (self.fixed or rows == 1)):
                    raise
                # The memory of the others first.
                self.size = self.size if self.frames else rows // 2
                log.warning("out of memory for a graph of %d rows: going on with less", rows)
            self.close()


def bucket(tokens: int) -> int:
    """`tokens` rounded up, by a half at most where they are many: so that few graphs are made."""
    step = max(FEWEST_COLUMNS, 1 << max((tokens - 1).bit_length() - 2, 0))
    return -(-tokens // step) * step


def check_followed(config: GenerationConfig) -> None:
    """Raise a ValueError for generation parameters that compiled steps cannot follow."""
    if wrong := unfollowed(config):
        raise ValueError(
            f"{', '.join(wrong)}: not possible with compile: true; leave it out, or set "
            "compile: false"
        )
