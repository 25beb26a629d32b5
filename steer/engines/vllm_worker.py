"""vLLM's worker with steering in it: runs in each of vLLM's processes, one for each GPU.

Banks go into the model between loading and compiling, so that compiled graphs and CUDA graphs hold
them. Before each pass the slots of its tokens are written; recipes come and go between passes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from vllm.distributed import get_pp_group
from vllm.model_executor.models.utils import PPMissingLayer
from vllm.platforms import current_platform
from vllm.v1.core.sched.output import SchedulerOutput

from steer.engines.wire import unpack
from steer.models.banks import ANY, Bank
from steer.models.interventions import HEAD_INPUT, LOGITS, EditTensor, Place, moved
from steer.models.layout import list_of
from steer.models.slots import NOTHING, Line, SlotBook

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker

# In vLLM's `additional_config`, which also decides whether a graph kept on disk may be used.
CONFIG = "steer"
# In a request's `SamplingParams.extra_args`: the name of its recipe.
RECIPE = "steer_recipe"
# Beside it: how many tokens come before the answer, where the prompt holds an answer to be scored.
START = "steer_start"


class SteeringWorker(PlatformWorker):  # type: ignore[misc]
    """The platform's worker; the methods that begin with `steer_` are called from outside."""

    def load_model(self, **options: Any) -> None:
        """Load the model, and put the banks into it before anything is compiled."""
        super().load_model(**options)
        self.steering = Steering(self.model_runner, self.vllm_config)

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """Run one pass, each token steered by its request's recipe."""
        self.steering.see(scheduler_output)
        return super().execute_model(scheduler_output)

    def steer_add(self, name: str, recipe: bytes) -> dict[str, Any]:
        """Take a recipe in; where it is, or the `error`."""
        try:
            return {"places": self.steering.add(name, unpack(recipe))}
        except (ValueError, RuntimeError) as error:
            return {"error": f"{type(error).__name__}: {error}"}

    def steer_remove(self, name: str) -> dict[str, Any]:
        """Take a recipe out that no request names any more, if it is here."""
        if name in self.steering.book.lines:
            self.steering.book.remove(name)
        return {}

    def steer_counts(self, names: list[str]) -> dict[str, Any]:
        """What recipes did since they were last asked for, by place."""
        return {"counts": self.steering.counts(names)}


class Steering:
    """The banks of one worker, and what its requests ask for.

    Args:
        runner: vLLM's model runner, of either version.
        config: vLLM's config, with ours in it.
    """

    def __init__(self, runner: Any, config: Any) -> None:
        wanted = config.additional_config[CONFIG]
        self.model: nn.Module = runner.get_model()
        self.slots: int = wanted["slots"]
        self.device: torch.device = runner.device
        self.index = self._index(config.scheduler_config.max_num_batched_tokens)
        self.head_index = self._index(config.scheduler_config.max_num_batched_tokens)
        self.width: int = config.model_config.get_hidden_size()
        depth = config.model_config.hf_text_config.num_hidden_layers
        banks = self._in_blocks(
            list_of(depth, self.model, type(self.model).__name__), wanted["stages"]
        )
        # The head is run by those that have the last blocks.
        banks |= self._at_head() if wanted["head"] and get_pp_group().is_last_rank else {}
        self.book = SlotBook(banks, self.slots)
        self.rows: dict[str, tuple[Line, int]] = {}
        self.read: dict[str, int] = {}
        self.scheduled: Mapping[str, int] = {}
        self._after_ordering(runner)

    def _index(self, tokens: int) -> Tensor:
        # CUDA graphs pad a pass beyond what the scheduler may ask for.
        return torch.zeros(2 * tokens, dtype=torch.int64, device=self.device)

    def _in_blocks(
        self, blocks: nn.ModuleList, stages: Mapping[str, Sequence[Sequence[str]]]
    ) -> dict[Place, Bank]:
        banks: dict[Place, Bank] = {}
        for layer, of_layer in stages.items():
            block = blocks[int(layer)]
            if not isinstance(block, PPMissingLayer):
                banks[int(layer)] = bank = Bank(self.width, self.slots, of_layer, self.index)
                block.register_forward_hook(_hook(bank))
        return banks

    def _at_head(self) -> dict[Place, Bank]:
        """Banks before and behind the head, which vLLM runs outside of its graphs."""
        places = (HEAD_INPUT, LOGITS)
        banks: dict[Place, Bank] = {
            p: Bank(self.width, self.slots, [(ANY,)], self.head_index) for p in places
        }
        compute: Any = self.model.compute_logits

        def steered(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
            logits = compute(banks[HEAD_INPUT](hidden), *args, **kwargs)
            logits = None if logits is None else banks[LOGITS](logits)
            # What else is computed in this pass is of prompts' tokens, in no order known here.
            self.head_index.zero_()
            return logits

        self.model.compute_logits = steered  # type: ignore[assignment]
        return banks

    def _after_ordering(self, runner: Any) -> None:
        """Have `place` called as soon as the runner knows the order of the requests."""
        name = "prepare_inputs" if hasattr(runner, "prepare_inputs") else "_prepare_inputs"
        prepare = getattr(runner, name)

        def prepared(*args: Any, **kwargs: Any) -> Any:
            result = prepare(*args, **kwargs)
            if isinstance(result, tuple):
                self.place(runner.input_batch.req_ids, result[0])
            else:
                self.place(result.req_ids, result.logits_indices)
            return result

        setattr(runner, name, prepared)

    def see(self, output: SchedulerOutput) -> None:
        """Take note of what the pass that comes is of.

        Raises:
            RuntimeError: A request names a recipe that is not here: it would not be steered.
        """
        for request in output.finished_req_ids:
            self.rows.pop(request, None)
            self.read.pop(request, None)
        for new in output.scheduled_new_reqs:
            extra = getattr(new.sampling_params, "extra_args", None) or {}
            start = extra.get(START, new.prompt_len)
            self.rows[new.req_id] = (self._line(extra.get(RECIPE)), start)
            self.read[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        self.read.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        self.scheduled = output.num_scheduled_tokens

    def _line(self, name: str | None) -> Line:
        if name is None:
            return NOTHING
        if name not in self.book.lines:
            raise RuntimeError(f"no recipe {name!r} in this worker: it has {list(self.book.lines)}")
        return self.book.lines[name]

    def place(self, order: Sequence[str], last: Tensor) -> None:
        """Write the slot of each token of the pass that comes.

        Args:
            order: Its requests.
            last: [rows of the head], which tokens the head reads.
        """
        parts = [self._slots(request) for request in order]
        slots = torch.from_numpy(np.concatenate(parts))
        self.index.zero_()
        self.index[: len(slots)] = slots.to(self.device, non_blocking=True)
        self.head_index.zero_()
        self.head_index[: len(last)] = self.index[last]

    def _slots(self, request: str) -> np.ndarray:
        line, start = self.rows[request]
        return line.at(self.read[request] - start, self.scheduled[request])

    def add(self, name: str, edits: Sequence[EditTensor]) -> list[Place]:
        """Take a recipe in; its places in this worker."""
        return self.book.add(name, [moved(edit, self.device) for edit in edits])

    def counts(self, names: Sequence[str]) -> list[tuple[Place, list[float]]]:
        """By place: tokens, tokens changed, sum of |change| / |residual|, passes; then zeros."""
        slots = [slot for name in names for slot in self.book.slots_of(name)]
        return [(place, bank.taken(slots)) for place, bank in self.book.banks.items()]


def _hook(bank: Bank) -> Any:
    def hook(_module: nn.Module, _args: object, output: Any) -> Any:
        if not isinstance(output, tuple):
            return bank(output)
        hidden, *others = output
        # Where norms add the residual, a block gives both, and what it means is their sum.
        residual = others[0] if others and _is_like(others[0], hidden) else None
        return (bank(hidden, residual), *others)

    return hook


def _is_like(value: object, hidden: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == hidden.shape
