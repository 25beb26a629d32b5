"""A model whose decoding steps are compiled graphs, with the banks that steer it inside them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import chain
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from steer.models.banks import ANY, NO_SLOT, Bank
from steer.models.batching import PASS_TOKENS, padded
from steer.models.grouped_attention import grouped
from steer.models.hooks import edit_input, edit_output
from steer.models.interventions import HEAD_INPUT, LOGITS, Place
from steer.models.request import can_refill
from steer.models.row_cache import RowCache
from steer.models.slots import Layout, SlotBook
from steer.models.steered_model import SteeredModel

HEAD = (HEAD_INPUT, LOGITS)
WINDOWED = "sliding_attention"
# Passes before a CUDA graph is captured, in which kernels choose their settings.
WARM_UP = 3


class CompiledModel:
    """A second tree of modules over a model's weights, with banks in it.

    They are there before it is compiled, and for good; the model itself stays as it was.
    Prompts are read without compiling, by `read`; a `Frame` says token after token.

    Attributes:
        twin: The second tree.
        book: Recipes in the banks' slots.
        expected: [2, slots]: tokens that blocks, and the head, had in each slot by what was placed.
        captures: Whether steps are CUDA graphs.
    """

    def __init__(
        self, model: SteeredModel, layout: Layout, slots: int, backend: str | Callable[..., Any]
    ) -> None:
        """Put banks in; nothing is compiled yet.

        Args:
            model: Its weights are shared.
            layout: What can be steered where.
            slots: Of each bank.
            backend: `torch.compile`'s.

        Raises:
            ValueError: A model that cannot be compiled this way.
        """
        check_can_compile(model)
        own = {id(one): one for one in chain(model.model.parameters(), model.model.buffers())}
        self.twin = SteeredModel(deepcopy(model.model, own), model.tokenizer)
        self.backend, self.device = backend, model.device
        config: Any = model.model.config.get_text_config(decoder=True)
        longest = getattr(config, "max_position_embeddings", 0)
        tokens = max(PASS_TOKENS.get(self.device.type, PASS_TOKENS["cpu"]), longest)
        self.indices = [self._index(tokens), self._index(tokens)]
        self.last = {"logits_to_keep": 1} if model.accepts("logits_to_keep") else {}
        banks = {place: self._bank(place, stages, slots) for place, stages in layout.items()}
        self.book = SlotBook(banks, slots)
        self.expected = np.zeros((2, slots), dtype=np.int64)
        anything = any(ANY in stage for stages in layout.values() for stage in stages)
        self.captures = self.device.type == "cuda" and not anything

    def _index(self, tokens: int) -> Tensor:
        return torch.zeros(tokens, dtype=torch.int64, device=self.device)

    def _bank(self, place: Place, stages: Sequence[Sequence[str]], slots: int) -> Bank:
        head: Any = self.twin.head
        width = head.weight.shape[0] if place == LOGITS else self.twin.d_model
        bank = Bank(width, slots, stages, self.indices[place in HEAD])
        if place == HEAD_INPUT:
            edit_input(head, bank)
        else:
            edit_output(head if place == LOGITS else self.twin.blocks[int(place)], bank)
        return bank

    def place(self, slots: np.ndarray) -> None:
        """Say in which slot each token of the passes that come is; `slots` [rows, columns]."""
        read = slots[:, -1:] if self.last else slots
        for number, part in enumerate((slots, read)):
            given = torch.from_numpy(part.flatten())
            self.indices[number][: len(given)] = given.to(self.device)

    def expect(self, slots: np.ndarray) -> None:
        """Note that a pass was made with these placed."""
        read = slots[:, -1:] if self.last else slots
        for number, part in enumerate((slots, read)):
            self.expected[number] += np.bincount(part.flatten(), minlength=self.book.size)

    @torch.no_grad()
    def read(self, prompts: Sequence[list[int]], slots: np.ndarray, cache: DynamicCache) -> Tensor:
        """Read left-padded prompts, in `slots` [rows, columns], into `cache`.

        Returns:
            Logits of their last tokens, [rows, vocab].
        """
        ids, mask = padded(prompts, 0, "left", self.device)
        numbers = (mask.cumsum(dim=-1) - 1).clamp_min(0)
        self.place(slots)
        before = [(b.counts.clone(), b.passes.clone()) for b in self.book.banks.values()]
        used = set(np.unique(slots).tolist())
        for bank in self.book.banks.values():
            bank.rests = used.isdisjoint(bank.filled)
        try:
            logits = self.logits(ids, mask, numbers, cache)
        except BaseException:
            # A pass in which memory ran out does not count.
            for bank, (counts, passes) in zip(self.book.banks.values(), before, strict=True):
                bank.counts.copy_(counts)
                bank.passes.copy_(passes)
            raise
        self.expect(slots)
        return logits

    def logits(self, ids: Tensor, mask: Any, numbers: Tensor, cache: Any) -> Tensor:
        """Of the last column, [rows, vocab]; `ids` and `numbers` (positions) are [rows, seq]."""
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": numbers, **self.last}
        return self.twin.model(**inputs, past_key_values=cache, use_cache=True).logits[:, -1]

    def forget_counts(self) -> None:
        """Let all counts begin anew."""
        self.expected[:] = 0
        for bank in self.book.banks.values():
            bank.counts.zero_()
            bank.passes.zero_()

    def taken(self, slots: Sequence[int]) -> dict[Place, list[float]]:
        """What the graphs counted in `slots`, by place; they count anew.

        Raises:
            RuntimeError: Tokens that were to be steered were not: a bank is not in the graph.
        """
        found = {}
        for place, bank in self.book.banks.items():
            acting = sorted(bank.filled.intersection(slots))
            wanted = int(self.expected[int(place in HEAD), acting].sum())
            found[place] = counts = bank.taken(slots)
            if counts[0] != wanted:
                raise RuntimeError(
                    f"{place} was to steer {wanted} tokens, its graph steered {counts[0]:.0f}: the "
                    "answers are not steered ones; set compile: false"
                )
        self.expected[:, list(slots)] = 0
        return found


class Frame:
    """A compiled step for so many rows of so many tokens at most.

    Attributes:
        tokens: [rows], what each row reads next.
        lengths: [rows], tokens it has read; 0 where a row is vacant.
        logits: [rows, vocab], of the latest step.
    """

    def __init__(self, model: CompiledModel, rows: int, columns: int) -> None:
        """Compile it, and capture it where it can be.

        Raises:
            RuntimeError: The compiler does not know what the model does.
        """
        self.model, self.rows, self.columns = model, rows, columns
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=model.device)
        self.lengths = torch.zeros_like(self.tokens)
        like = DynamicCache(config=model.twin.model.config)
        nowhere = np.full((rows, 1), NO_SLOT)
        model.read([[0]], nowhere[:1], like)
        model.place(nowhere)
        self.cache = RowCache(like, columns, self.lengths)
        self.windows = _windows(model.twin)
        # The compiler keeps what it made by code object: one of our own has one graph, for good.
        step = FunctionType(_step.__code__.replace(), _step.__globals__)
        options: Any = {"backend": model.backend, "dynamic": False, "fullgraph": True}
        self._compiled = torch.compile(step, **options)
        self.logits = self._first()
        self._graph = self._captured() if model.captures else None

    @torch.no_grad()
    def step(self) -> None:
        """Read `tokens`; the likeliest next ones are there then, and `logits`."""
        if self._graph is not None:
            self._graph.replay()
        else:
            # There is one graph, and what it is given never changes: nothing is asked that another
            # model in this process could answer otherwise.
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                self.logits = self._run()

    def masks(self) -> Any:
        """What attention adds to its scores, [rows, 1, 1, columns]; by kind where there are more.

        Columns are positions: a row sees its own tokens, and in a window the last of them.
        """
        columns = torch.arange(self.columns, device=self.lengths.device)
        ahead = self.lengths[:, None] - columns
        dtype = self.model.twin.model.dtype
        made = {}
        for kind, window in self.windows.items():
            seen = ahead >= 0 if window is None else (ahead >= 0) & (ahead < window)
            far = torch.where(seen, 0.0, torch.finfo(dtype).min)
            made[kind] = far.to(dtype)[:, None, None]
        return made.get(None, made)

    def _run(self) -> Tensor:
        with grouped(self.model.twin.model.config):
            return self._compiled(self)

    @torch.no_grad()
    def _first(self) -> Tensor:
        try:
            return self._run()
        except torch._dynamo.exc.TorchDynamoException as error:
            name = type(self.model.twin.model).__name__
            lines = str(getattr(error, "inner_exception", error)).splitlines()
            reason = next(line for line in lines if line.strip())
            raise RuntimeError(
                f"{name} cannot be compiled ({reason.strip()}): set compile: false"
            ) from error

    @torch.no_grad()
    def _captured(self) -> torch.cuda.CUDAGraph:
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP):
                self._run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._run()
        return graph


def _step(frame: Frame) -> Tensor:
    lengths = frame.lengths
    numbers = lengths[:, None]
    logits = frame.model.logits(frame.tokens[:, None], frame.masks(), numbers, frame.cache)
    frame.tokens.copy_(logits.argmax(dim=-1))
    lengths.add_(lengths > 0)
    return logits


def check_can_compile(model: SteeredModel) -> None:
    """Raise a ValueError that says why a model cannot be compiled, if so."""
    attention = model.model.config._attn_implementation
    quantised = getattr(model.model, "is_quantized", False)
    known = can_refill(model) and model.accepts("position_ids")
    reasons = {
        "it is spread over several devices": model.spread,
        "it is quantised": quantised,
        f"it is on {model.device.type}": model.device.type not in ("cpu", "cuda"),
        f"its attention is {attention}, not sdpa or eager": attention not in ("sdpa", "eager"),
        "it keeps another state than keys and values by position": not known,
    }
    if why := [reason for reason, holds in reasons.items() if holds]:
        name = type(model.model).__name__
        raise ValueError(f"{name} cannot be compiled: {', '.join(why)}; set compile: false")


def _windows(model: SteeredModel) -> Mapping[str | None, int | None]:
    """By kind of attention how many tokens one sees, itself included; None is no limit.

    One kind, None, where the model takes one mask for all.
    """
    config: Any = model.model.config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    if not hasattr(config, "layer_types"):
        return {None: window}
    return {kind: window if kind == WINDOWED else None for kind in set(config.layer_types)}
