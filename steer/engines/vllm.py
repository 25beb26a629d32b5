"""vLLM as an engine: the same interventions at serving speed, a recipe of its own a request."""

import itertools
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, tensor

from steer.engines.options import EngineOptions
from steer.engines.recipes import (
    HEAD,
    Recipe,
    Room,
    acting,
    layout_of,
    name_of,
    salt_of,
    size_of,
)
from steer.engines.vllm_sampling import sampling_of
from steer.engines.vllm_start import start_vllm
from steer.engines.wire import pack
from steer.models import Answer, SteeredModel
from steer.models.generation import answer_of_ids, settings_of
from steer.models.interventions import Place
from steer.models.slots import Layout, joined
from steer.models.tally import CountedTally, Tally

# The keys of vllm_worker, which only vLLM's processes import.
RECIPE, START = "steer_recipe", "steer_start"


class VLLMEngine:
    """An engine of vLLM's that steers.

    Recipes are sent to the workers before the first request that names them, and stay there until
    room is needed. A request that is not steered names none.

    Args:
        model: Its tokenizer and generation settings count; weights are not touched.
        path: Where vLLM finds the weights.
        dtype: Of the weights there.
        layout: What can be steered, see `layout_of`; graphs are made for it.
        options: How vLLM is started.
        read: How the weights are read, as `ModelSource.place` has it.

    Attributes:
        passes: By place, how many that steered a token have been counted, whatever the recipe.

    Raises:
        ModuleNotFoundError: vLLM is not installed.
    """

    def __init__(
        self,
        model: SteeredModel,
        path: str,
        dtype: str,
        layout: Layout,
        options: EngineOptions,
        read: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.layout, self.options = model, layout, options
        self.room = Room(options.vllm_slots - 1)
        self.passes: Counter[Place] = Counter()
        self._counted: dict[Place, CountedTally] = {}
        self._numbers = itertools.count()
        self.llm = start_vllm(path, dtype, self.layout, options, read or {})

    def fits(self, recipe: Recipe) -> bool:
        """Whether the engine was started with what `recipe` needs."""
        return joined(self.layout, layout_of([recipe])) == self.layout

    def batches(
        self,
        prompts: Sequence[Sequence[int]],
        params: dict[str, Any],
        recipes: Sequence[Recipe],
        seeds: Sequence[Sequence[int]],
        tally: Tally | None = None,
    ) -> Generator[tuple[list[int], list[Answer]]]:
        """Yield `(rows, answers)` as they are finished.

        Args:
            prompts: Token ids of each row.
            params: For `transformers`' `generate`, over the model's own generation settings.
            recipes: What each row is steered by.
            seeds: Each row's, for sampling.
            tally: Filled with counts that the workers kept inside their graphs.

        Raises:
            ValueError: A parameter that vLLM does not know.
        """
        prompts = [prompt or [self.model.first_token] for prompt in prompts]
        config, limits = settings_of(self.model, prompts, params)
        chosen = [
            sampling_of(config, limit, seed) for limit, seed in zip(limits, seeds, strict=True)
        ]
        for row, output in self._run(prompts, chosen, recipes, tally):
            yield [row], [answer_of_ids(self.model, list(prompts[row]), list(output.token_ids))]

    def log_probs(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        recipe: Recipe = (),
    ) -> list[Tensor]:
        """Log P of each answer token given what is before it; float32 [tokens], a tensor a row.

        Raises:
            ValueError: A recipe that edits what the head reads or gives.
        """
        if any(edit.place in HEAD for edit in recipe):
            raise ValueError("vllm scores no answers under edits of the head: set engine: hf")
        rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
        params = [{"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0} for _ in rows]
        starts = [len(prompt) for prompt in prompts]
        found: dict[int, Tensor] = {}
        for row, output in self._run(rows, params, [recipe] * len(rows), None, starts, whole=True):
            given = output.prompt_logprobs[starts[row] :]
            ids = rows[row][starts[row] :]
            found[row] = tensor([at[token].logprob for at, token in zip(given, ids, strict=True)])
        return [found[row] for row in range(len(rows))]

    def close(self) -> None:
        """End vLLM's processes."""
        self.llm.llm_engine.engine_core.shutdown()

    def _run(
        self,
        prompts: Sequence[Sequence[int]],
        params: Sequence[Mapping[str, Any]],
        recipes: Sequence[Recipe],
        tally: Tally | None,
        starts: Sequence[int] | None = None,
        *,
        whole: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Answers as they come, by row; requests wait where their recipe finds no slot.

        Args:
            prompts: Token ids.
            params: Of each request's `SamplingParams`.
            recipes: Of each request.
            tally: Filled with the recipes' counts.
            starts: Where each row's answer begins, where the prompt holds one.
            whole: Whether to give vLLM's whole output instead of its one answer.
        """
        starts = [len(prompt) for prompt in prompts] if starts is None else starts
        distinct = {id(recipe): recipe for recipe in recipes}
        name = {number: name_of(recipe) for number, recipe in distinct.items()}
        names = [name[id(recipe)] for recipe in recipes]
        self.collect(self.room.sizes)
        self._counted = {}
        waiting, running = deque(range(len(prompts))), dict[str, int]()
        try:
            while waiting or running:
                while waiting and self.admit(names[waiting[0]], recipes[waiting[0]]):
                    row = waiting.popleft()
                    request = self.send(
                        prompts[row], params[row], recipes[row], names[row], starts[row]
                    )
                    running[request] = row
                for output in self.llm.llm_engine.step():
                    if output.finished:
                        row = running.pop(output.request_id)
                        self.release(names[row])
                        yield row, output if whole else output.outputs[0]
        finally:
            # A caller that stops early, or Ctrl-C, must not leave requests to the next one.
            self.llm.llm_engine.abort_request(list(running))
            for row in running.values():
                self.release(names[row])
        self._keep(self.collect(self.room.sizes))
        gated = {e.place: e.edit.gated for recipe in distinct.values() for e in recipe}
        for place, counted in self._counted.items():
            counted.gated = gated[place]
        if tally is not None:
            tally |= self._counted

    def send(
        self,
        prompt: Sequence[int],
        params: Mapping[str, Any],
        recipe: Recipe,
        name: str | None,
        start: int,
    ) -> str:
        """Hand a request to vLLM; the number that its outputs bear."""
        from vllm import SamplingParams

        extra = {} if name is None else {RECIPE: name, START: start}
        chosen = SamplingParams(**params, extra_args=extra)
        # Keys and values depend on the steering: two recipes must never share a block of them.
        salt = {} if name is None else {"cache_salt": salt_of(recipe, name, start)}
        request = {"prompt_token_ids": list(prompt), **salt}
        number = f"steer-{next(self._numbers)}"
        # What it returns is vLLM's own number, which its outputs do not bear.
        self.llm.llm_engine.add_request(number, request, chosen)
        return number

    def admit(self, name: str | None, recipe: Recipe) -> bool:
        """Count a request of a recipe, which is installed if it is not; False where no room is."""
        if name is None:
            return True
        if name not in self.room.sizes:
            leaving = self.room.leaving_for(size_of(recipe))
            if leaving is None:
                return False
            for other in leaving:
                self._keep(self.collect([other]))
                self._call("steer_remove", other)
                self.room.forget(other)
            self._install(name, acting(recipe))
            self.room.put(name, size_of(recipe))
        self.room.requests[name] += 1
        return True

    def _install(self, name: str, edits: Recipe) -> None:
        try:
            found = self._call("steer_add", name, pack(edits))
        except RuntimeError:
            # All workers must have the same recipes: slots are given in turn.
            self._call("steer_remove", name)
            raise
        workers = self.options.vllm_tensor_parallel_size
        places = [place for one in found for place in one["places"]]
        for place in {edit.place for edit in edits}:
            if places.count(place) != workers:
                raise RuntimeError(
                    f"{place} is to be steered in {workers} workers, {places.count(place)} of "
                    f"{len(found)} have it: the answers would not be steered ones"
                )

    def release(self, name: str | None) -> None:
        """Note that a request of a recipe is over."""
        if name is not None:
            self.room.requests[name] -= 1

    def collect(self, names: Iterable[str]) -> dict[Place, CountedTally]:
        """Fetch what recipes did since the last time; the workers count anew."""
        found = self._call("steer_counts", list(names))
        by_place: dict[Place, list[Sequence[float]]] = {}
        for worker in found:
            for place, counts in worker["counts"]:
                by_place.setdefault(place, []).append(counts)
        counted: dict[Place, CountedTally] = {}
        for place, workers in by_place.items():
            # Workers that share a layer must have done the same.
            if len({counts[:2] for counts in map(tuple, workers)}) > 1:
                raise RuntimeError(f"workers disagree on what they steered at {place}: {workers}")
            tokens, changed, ratio, passes = workers[0]
            self.passes[place] += int(passes)
            # Passes are a place's, and went to the recipe that was asked about first.
            if passes or tokens:
                sums = (int(tokens), int(changed), ratio)
                counted[place] = CountedTally(passes=int(passes), sums=sums)
        return counted

    def _keep(self, counted: Mapping[Place, CountedTally]) -> None:
        for place, counts in counted.items():
            self._counted.setdefault(place, CountedTally()).add(counts)

    def _call(self, method: str, *args: Any) -> list[dict[str, Any]]:
        """What each worker answers.

        Raises:
            RuntimeError: A worker could not do it; its own text is in the message.
        """
        found = self.llm.collective_rpc(method, args=args)
        failed = [f"worker {n}: {one['error']}" for n, one in enumerate(found) if "error" in one]
        if failed:
            raise RuntimeError(f"{method} failed in vLLM; {'; '.join(failed)}")
        return found
