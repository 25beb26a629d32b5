"""vLLM as a `ContinuousDecoder` is for transformers: requests are added at any time."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from steer.engines.recipes import acting, name_of, size_of
from steer.engines.vllm import VLLMEngine
from steer.engines.vllm_sampling import sampling_for
from steer.models import EditTensor
from steer.models.continuous import NewToken
from steer.models.interventions import Place
from steer.models.request import Request, Row
from steer.models.tally import CountedTally

Counts = dict[Place, CountedTally]


@dataclass(frozen=True, eq=False)
class _Steered:
    """A row, and its recipe as the workers know it."""

    row: Row
    recipe: list[EditTensor]
    name: str | None
    before: Counts = field(default_factory=dict)


class VLLMRequests:
    """Answers requests token by token.

    `add` and `cancel` may be called by any thread, the rest by one.

    Attributes:
        waiting: Requests that vLLM does not know of yet, the next one first.
        running: Those that it does, by its number.
    """

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine = engine
        self.waiting: deque[_Steered] = deque()
        self.running: dict[str, _Steered] = {}
        self._cancelled: deque[Hashable] = deque()
        self._done: dict[str, Counts] = {}
        scheduler = engine.llm.llm_engine.vllm_config.scheduler_config
        self.rows: int = scheduler.max_num_seqs

    def add(self, request: Request) -> None:
        """Let `request` wait for its turn."""
        recipe = [one for one in request.interventions if isinstance(one, EditTensor)]
        self.waiting.append(_Steered(Row(request), recipe, name_of(recipe)))

    def cancel(self, key: Hashable) -> None:
        """Forget a request, at the next step; one that is over already is no error."""
        self._cancelled.append(key)

    @property
    def busy(self) -> bool:
        """Whether a request waits or is under way."""
        return bool(self.waiting or self.running)

    def check(self, recipe: list[EditTensor]) -> None:
        """Raise a ValueError for a recipe that the engine cannot do."""
        if not self.engine.fits(recipe):
            raise ValueError("vLLM was not started with what this steering does at one layer")
        self.engine.room.check(size_of(recipe))

    def step(self) -> list[NewToken]:
        """Wait for vLLM's next tokens."""
        self._forget_cancelled()
        while self.waiting and len(self.running) < self.rows and self._sent(self.waiting[0]):
            self.waiting.popleft()
        if not self.running:
            return []
        given: list[NewToken] = []
        over: list[tuple[str, _Steered]] = []
        for output in self.engine.llm.llm_engine.step():
            # Outputs of what was cancelled may still be on their way.
            one = self.running.get(output.request_id)
            if one is not None and self._say(one, output, given):
                over.append((output.request_id, one))
        self._end(over)
        return given

    def _sent(self, one: _Steered) -> bool:
        """Whether there is room for a request, which is then under way."""
        from vllm.sampling_params import RequestOutputKind

        request, name = one.row.request, one.name
        if not self.engine.admit(name, one.recipe):
            return False
        if name is not None:
            # Whoever is under way with a recipe has it counted from where it came in.
            self._done = {n: c for n, c in self._done.items() if n in self.engine.room.sizes}
            places = {edit.place for edit in acting(one.recipe)}
            self._done.setdefault(name, {place: CountedTally() for place in places})
            one.before.update(self._counted(name))
        params = sampling_for(request.manner, request.limit, request.seed)
        params["output_kind"] = RequestOutputKind.DELTA
        prompt = request.prompt
        try:
            number = self.engine.send(prompt, params, one.recipe, name, len(prompt))
        except BaseException:
            self.engine.release(name)
            raise
        self.running[number] = one
        return True

    def _say(self, one: _Steered, output: Any, given: list[NewToken]) -> bool:
        """Note new tokens; whether the answer is over."""
        row, new = one.row, list(output.outputs[0].token_ids)
        for number, token in enumerate(new):
            ended = row.say(token) or (output.finished and number == len(new) - 1)
            answer = row.said if ended else None
            given.append(NewToken(row.request.key, token, answer, row.tally))
            if ended:
                return True
        return False

    def _end(self, over: list[tuple[str, _Steered]]) -> None:
        if not over:
            return
        # vLLM knows nothing of stop strings; that it has ended others itself is no error.
        self.engine.llm.llm_engine.abort_request([number for number, _ in over])
        for name in {one.name for _, one in over if one.name is not None}:
            done = self._done[name]
            for place, counts in self.engine.collect([name]).items():
                # Passes come of all places: what others steer is none of this recipe's.
                if place in done:
                    done[place].add(counts)
        for number, one in over:
            del self.running[number]
            self.engine.release(one.name)
            for place, counts in self._counted(one.name).items():
                one.row.tally[place] = counts.since(one.before[place])

    def _counted(self, name: str | None) -> Counts:
        """What a recipe has done so far; passes are those that steered anything at the place."""
        done = self._done.get(name or "", {})
        return {
            place: CountedTally(passes=self.engine.passes[place], sums=counts.sums)
            for place, counts in done.items()
        }

    def _forget_cancelled(self) -> None:
        keys = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if not keys:
            return
        gone = [n for n, one in self.running.items() if one.row.request.key in keys]
        self.engine.llm.llm_engine.abort_request(gone)
        for number in gone:
            self.engine.release(self.running.pop(number).name)
        # Others may add meanwhile: what is kept goes round once.
        for _ in range(len(self.waiting)):
            one = self.waiting.popleft()
            if one.row.request.key not in keys:
                self.waiting.append(one)
