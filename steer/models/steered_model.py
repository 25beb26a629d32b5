"""A language model together with the interventions now in force on it."""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from steer.models.gates import TOKEN, Decisions, Gate
from steer.models.hooks import TensorEdit, edit_input, edit_output, reading, watch_arguments
from steer.models.interventions import (
    HEAD_INPUT,
    LOGITS,
    EditPrompt,
    EditTensor,
    Intervention,
    Place,
    on_device,
)
from steer.models.layout import blocks_of, decoder_of, width_of
from steer.models.positions import Pass
from steer.models.tally import PassNote, PlaceTally, Tally


class SteeredModel:
    """A causal language model, its tokenizer, and the interventions in force, by method key.

    Interventions are kept as data; hooks live only inside `steering()`, so nothing can outlast
    the call that needed it, and `reset` has only to forget. Calling `model.model(...)` bare is
    therefore never steered: use `generate`, or open `steering()` around the call.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.blocks: nn.ModuleList = blocks_of(model)
        self.decoder: nn.Module = decoder_of(model)
        self.d_model: int = width_of(model)
        self.model: PreTrainedModel = model.eval()
        self.tokenizer = tokenizer
        self.in_force: dict[str, list[Intervention]] = {}

    @property
    def depth(self) -> int:
        """How many decoder blocks there are."""
        return len(self.blocks)

    @property
    def device(self) -> torch.device:
        """Where token ids go."""
        embeddings: Any = self.model.get_input_embeddings()
        if embeddings.weight.device.type != "meta":
            return embeddings.weight.device
        # Offloaded: accelerate fetches the weights to a device of its own for each call.
        hook = getattr(embeddings, "_hf_hook", None)
        if hook is None:
            return torch.device("cpu")
        used = [one.execution_device for one in getattr(hook, "hooks", [hook])]
        return torch.device("cpu" if used[0] is None else used[0])

    @property
    def spread(self) -> bool:
        """Whether accelerate keeps the blocks on several devices."""
        return len(set(getattr(self.model, "hf_device_map", {}).values())) > 1

    @property
    def first_token(self) -> int:
        """What stands before a text that no token stands before."""
        tokenizer: Any = self.tokenizer
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, 0)
        return next(token for token in ids if token is not None)

    def accepts(self, argument: str) -> bool:
        """Whether the model's forward takes an argument of that name."""
        return argument in inspect.signature(self.model.forward).parameters

    def check_layers(self, layers: Iterable[int]) -> None:
        """Raise a ValueError for a layer that the model does not have."""
        wrong = [layer for layer in layers if not 0 <= layer < self.depth]
        if wrong:
            raise ValueError(
                f"layers {wrong} do not exist: the model has {self.depth} decoder blocks, "
                f"counted from 0 to {self.depth - 1}"
            )

    def steer(self, name: str, interventions: Iterable[Intervention]) -> None:
        """Put `interventions` in force under `name`, in place of those it had."""
        self.in_force[name] = list(interventions)

    def reset(self, name: str) -> None:
        """Take the interventions of one method out of force."""
        self.in_force.pop(name, None)

    def reset_all(self) -> None:
        """Take every intervention out of force."""
        self.in_force.clear()

    def interventions(self) -> list[Intervention]:
        """All interventions in force, in the order their methods were applied."""
        return [i for interventions in self.in_force.values() for i in interventions]

    def prompted(self, text: str) -> str:
        """`text` behind the steering prompts in force, which stand in the order of methods."""
        prompts = [i.text for i in self.interventions() if isinstance(i, EditPrompt)]
        return " ".join([*prompts, text])

    @contextmanager
    def steering(
        self,
        interventions: Sequence[Intervention] | None = None,
        *,
        prompt_lengths: Tensor | None = None,
        tally: Tally | None = None,
    ) -> Iterator[Decisions]:
        """Hold the hooks of `interventions` while open; of those in force where None.

        Yields what gates decide.

        What changes nothing (a strength of 0) gets no hook: logits stay those of the bare model.

        Args:
            interventions: What to do; prompts are not put before text here (see `prompted`).
            prompt_lengths: [rows], tokens of each row's prompt; needed where an intervention is
                relative to the prompt's end.
            tally: Filled with the counts of each place that is steered.
        """
        chosen = self.interventions() if interventions is None else interventions
        by_place: dict[Place, list[EditTensor]] = {}
        for intervention in chosen:
            if isinstance(intervention, EditTensor) and not intervention.is_idle():
                by_place.setdefault(intervention.place, []).append(intervention)
        gates = dict.fromkeys(e.gate for edits in by_place.values() for e in edits if e.gate)
        self.check_layers(place for place in by_place if isinstance(place, int))
        self.check_layers(gate.layer for gate in gates)
        now = Pass(prompt_lengths=prompt_lengths)
        decisions = Decisions(now)
        with ExitStack() as stack:
            if by_place:
                stack.enter_context(watch_arguments(self.decoder, now.see))
            # Before the edits of the same block: a gate reads what the block itself gives.
            for gate in gates:
                hook = edit_output(self.blocks[gate.layer], _reader(gate, decisions))
                stack.enter_context(hook)
            for place, edits in by_place.items():
                counts = None if tally is None else tally.setdefault(place, PlaceTally())
                stack.enter_context(self._hook(place, _edit_at(edits, now, decisions, counts)))
            yield decisions

    def _hook(self, place: Place, edit: TensorEdit) -> RemovableHandle:
        if place == HEAD_INPUT:
            return edit_input(self.head, edit)
        return edit_output(self.head if place == LOGITS else self.blocks[int(place)], edit)

    @property
    def head(self) -> nn.Module:
        """The language model head, whose input and output methods may edit."""
        head: nn.Module | None = self.model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{type(self.model).__name__} has no language model head to steer")
        return head

    @torch.inference_mode()
    def read(self, inputs: Mapping[str, Any], layers: Sequence[int]) -> dict[int, Tensor]:
        """Block outputs [batch, seq, d_model] by layer, as steered where `steering()` is open.

        The pass stops behind the deepest of `layers`; the head never runs.
        """
        self.check_layers(layers)
        ordered = sorted(set(layers))
        with reading((layer, self.blocks[layer]) for layer in ordered) as recorded:
            self.decoder(**inputs, use_cache="past_key_values" in inputs)
        return recorded


def _reader(gate: Gate, decisions: Decisions) -> TensorEdit:
    def read(hidden: Tensor) -> Tensor:
        decisions.read(gate, hidden)
        return hidden

    return read


def _edit_at(
    edits: list[EditTensor], now: Pass, decisions: Decisions, counts: PlaceTally | None
) -> TensorEdit:
    placed: dict[torch.device, list[EditTensor]] = {}
    if counts is not None:
        counts.gated |= all(edit.edit.gated or edit.gate is not None for edit in edits)

    def edit(hidden: Tensor) -> Tensor:
        device = hidden.device
        if device not in placed:
            placed[device] = [replace(e, edit=on_device(e.edit, device)) for e in edits]
        before, note = hidden, None if counts is None else PassNote(now.real(hidden))
        for one in placed[device]:
            asked = now.chosen(one.where, hidden)
            columns = decisions.within(asked, one.gate, hidden)
            changed = one.edit(hidden)
            hidden = (
                changed if columns is None else torch.where(columns[..., None], changed, hidden)
            )
            if note is not None:
                note.edited(asked, columns, one.gate is not None and one.gate.by == TOKEN)
            if counts is not None and one.gate is not None:
                counts.rows += decisions.new_rows(one.gate, one.where)
        if counts is not None and note is not None:
            counts.note(before, hidden, note.steered, now.numbers(hidden), note.passed())
        return hidden

    return edit
