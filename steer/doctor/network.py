"""Checks of the network: blocks, hooks, numbers, batches."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from steer.doctor.base import Result, failure, ok, warning
from steer.doctor.patient import Patient
from steer.models import EditTensor

# Of a dtype's largest number, what activations should stay under.
FULL = 0.25
# Largest difference between logits of a batch and of single rows, in standard deviations of logits.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
COARSE = 0.2
# Modules of packages whose hooks belong to the model.
THEIRS = ("transformers", "accelerate", "torch", "bitsandbytes")


@torch.inference_mode()
def layout(patient: Patient) -> Iterator[Result]:
    """Block n gives what transformers calls hidden state n + 1."""
    model, ids = patient.ready, _ids(patient, 0)
    read = model.read({"input_ids": ids}, range(model.depth))
    states = model.model(input_ids=ids, output_hidden_states=True).hidden_states
    # The last state comes behind the final norm.
    wrong = [
        n
        for n in range(model.depth - 1)
        if not torch.allclose(read[n].float(), states[n + 1].float(), rtol=1e-2, equal_nan=True)
    ]
    if wrong:
        yield failure(
            f"the outputs of blocks {wrong} are not the hidden states that transformers names",
            "the layout of this architecture is not known: steer other layers, or ask for support "
            "with the model's name",
        )
    else:
        yield ok(f"{model.depth} blocks, each hook fires; outputs are transformers' hidden states")


def foreign_hooks(patient: Patient) -> Iterator[Result]:
    """Nobody else has hooks on the model."""
    found = others_on(patient.ready.model)
    if found:
        yield warning(
            f"hooks of others are on the model: {'; '.join(found[:4])}",
            "remove them (handle.remove()), or load the model anew: they act in every pass",
        )
    else:
        yield ok("no hooks of others")


def others_on(model: nn.Module) -> list[str]:
    """Modules with hooks that neither the library of the model nor steer put there, and whose."""
    found = []
    for name, module in model.named_modules():
        hooks: list[Any] = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        for hook in hooks:
            home = str(getattr(hook, "__module__", ""))
            if home.split(".")[0] not in THEIRS:
                found.append(f"{name or 'the model'}: {getattr(hook, '__qualname__', hook)}")
    return found


def numbers(patient: Patient) -> Iterator[Result]:
    """Activations are finite, and far from the dtype's largest number; steered ones too."""
    dtype = patient.ready.model.dtype
    limit, name = torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    wider = "set dtype: float32" if dtype == torch.bfloat16 else "set dtype: bfloat16 or float32"
    plain = _largest(patient, [])
    if not plain <= FULL * limit:
        yield _too_large(plain, limit, name, "", wider)
        return
    steered = _largest(patient, patient.edits) if patient.steps is not None else plain
    if not steered <= FULL * limit:
        yield _too_large(steered, limit, name, "steered ", f"{wider}, or lower the multipliers")
        return
    yield ok(f"activations up to {max(plain, steered):.3g}, {name} ends at {limit:.3g}")


def _too_large(seen: float, limit: float, dtype: str, which: str, do: str) -> Result:
    if seen == seen and seen < float("inf"):
        text = f"{which}activations reach {seen:.3g}, and {dtype} ends at {limit:.3g}"
        return warning(f"{text}: longer texts may overflow", do)
    return failure(f"{which}activations hold NaN or infinity: {dtype} ends at {limit:.3g}", do)


def _largest(patient: Patient, edits: Sequence[EditTensor]) -> float:
    """The largest magnitude in any block's output; NaN or infinity where there is one."""
    model, ids = patient.ready, _ids(patient, 2)
    length = torch.tensor([ids.shape[1]], device=model.device)
    with model.steering(edits, prompt_lengths=length):
        read = model.read({"input_ids": ids}, range(model.depth))
    return float(torch.stack([hidden.float().abs().max().cpu() for hidden in read.values()]).max())


def _ids(patient: Patient, number: int) -> Tensor:
    return torch.tensor([patient.prompts[number]], device=patient.ready.device)


def batches(patient: Patient) -> Iterator[Result]:
    """A batch of unequal rows gives what each row gives alone."""
    edits, rows, together = patient.edits, patient.prompts, patient.steered
    alone = torch.cat([patient.logits(edits, [row]) for row in rows])
    apart = float((together - alone).abs().max() / alone.std().clamp_min(1e-12))
    lengths = ", ".join(str(len(row)) for row in rows)
    found = f"rows of {lengths} tokens differ by {apart:.1e} standard deviations of logits"
    # Written so that NaN is bad.
    if not apart <= ROUNDING.get(patient.ready.model.dtype, COARSE):
        yield failure(
            f"a batch is not what its rows are alone: {found}",
            "set batch_size: 1, and look for what mixes rows: hooks of others, code that came with "
            "the model, an attention kernel without masks (attn_implementation: eager)",
        )
    else:
        yield ok(f"a batch equals its rows alone: {found}")
