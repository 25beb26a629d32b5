"""Checks of what steering does on a few prompts: hooks, strength 0, dose, and which way it goes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from steer.datasets import is_pair
from steer.doctor.base import Result, failure, ok, unchecked, warning
from steer.doctor.data import not_had
from steer.doctor.network import others_on
from steer.doctor.patient import Patient
from steer.effect import Effect, Group, measure_effect
from steer.judging import rows_digest
from steer.methods.gating import Gated
from steer.models import EditPrompt
from steer.models.interventions import cancels

# Steered text mostly shows from a tenth of the residual on, and breaks towards all of it.
FAINT, STRONG, ABSURD = 0.01, 0.5, 1.0
GOOD_DOSE = 0.2
PAIRS = 6
# Logits that differ by less, in standard deviations of logits, are taken for the same.
NOTHING = 1e-5
# Area under the ROC curve; a coin has 0.5.
DETECTS = 0.8


def strength(patient: Patient) -> Iterator[Result]:
    """Something is to be steered."""
    steps = [step for some in (patient.steps or {}).values() for step in some]
    prompts = [step for step in steps if isinstance(step, EditPrompt)]
    active = [edit for edit in patient.edits if not edit.is_idle()]
    if not active and not prompts:
        yield failure(
            f"{len(steps)} edits are in force, and every strength is 0: nothing is steered",
            "set multipliers to numbers other than 0, e.g. multipliers: [2.0]",
        )
        return
    for place in dict.fromkeys(edit.place for edit in active):
        if cancels([edit for edit in active if edit.place == place]):
            yield failure(
                f"what is added at {place} sums to nothing: the vectors cancel each other",
                "take one of them out, or change its multiplier",
            )
    yield ok(f"{len(active)} of {len(steps)} edits act" if not prompts else "steering prompts")


def zero(patient: Patient) -> Iterator[Result]:
    """At strength 0, and once steering is over, logits are the bare model's, bit for bit."""
    rows = patient.prompts
    before, nothing = patient.plain, []
    for method in patient.run.methods.values():
        if hasattr(method.half, "multipliers"):
            half = method.half
            silent = replace(half, multipliers=[0.0] * len(half.multipliers))
            nothing += silent.interventions(patient.ready, silent.load(patient.ready))
    _ = patient.steered  # whatever it leaves behind is to be seen
    at_zero = patient.logits(nothing, rows)
    after = patient.logits([], rows)
    for what, found in (("strength 0 gives", at_zero), ("after steering there are", after)):
        if not torch.equal(before, found):
            apart = float((before - found).abs().max())
            yield failure(
                f"{what} other logits than the bare model, by up to {apart:.1e}",
                "load the model anew, and look for what keeps a state between passes: hooks of "
                "others, dropout left on (model.eval()), kernels that differ from call to call",
            )
            return
    yield ok("strength 0, and the model after steering, are the bare model bit for bit")


def fires(patient: Patient) -> Iterator[Result]:
    """Hooks fire, change tokens, and the change reaches the logits."""
    active = [edit for edit in patient.edits if not edit.is_idle()]
    if not active:
        yield unchecked("no edit of activations acts")
        return
    tally = patient.tally
    silent = [e.place for e in active if e.place not in tally or not tally[e.place].passes]
    idle = [p for p, c in tally.items() if not c.summary()["tokens_changed"] and not c.gated]
    if silent or idle:
        yield failure(
            f"hooks that never fired: {silent}; that changed no token: {idle}",
            "see layers and positions; a block that is skipped or compiled away cannot be steered",
        )
        return
    plain, steered = patient.plain, patient.steered
    moved = float((plain - steered).abs().max() / plain.std().clamp_min(1e-12))
    counts = ", ".join(f"{place}: {_shown(c.summary())}" for place, c in tally.items())
    if moved <= NOTHING and not any(c.gated for c in tally.values()):
        there = "; ".join(others_on(patient.ready.model)) or "none that can be seen"
        yield failure(
            f"{counts}, and yet logits move by {moved:.1e} standard deviations: something behind "
            f"the steered block takes it back (hooks of others: {there})",
            "remove the other hooks (handle.remove()), or load the model anew",
        )
        return
    yield ok(f"{counts}; logits move by {moved:.2f} standard deviations")


def _shown(counts: dict[str, Any]) -> str:
    return f"{counts['passes']} passes, {counts['tokens_changed']} of {counts['tokens']} tokens"


def dose(patient: Patient) -> Iterator[Result]:
    """Changes are neither invisible nor larger than what was there."""
    tally = patient.tally
    if not tally:
        yield unchecked("no edit of activations acts")
    for place, counts in tally.items():
        share = counts.summary()["dose"]
        found = f"{place}: |change| is {share:.1%} of |residual|"
        by = f"multiply multipliers by {GOOD_DOSE / share:.2g}" if share > 0 else ""
        if counts.gated and not share:
            yield ok(f"{found} on these prompts, which the gate leaves alone")
        elif share > ABSURD:
            yield failure(f"{found}: text breaks long before that", f"{by}, for a dose of 20%")
        elif share > STRONG:
            yield warning(f"{found}: text is likely to break", f"{by}, for a dose of 20%")
        elif share < FAINT:
            yield warning(f"{found}: too little to be seen", f"{by}, for a dose of 20%")
        else:
            yield ok(found)


def gate(patient: Patient) -> Iterator[Result]:
    """Detectors that open gates tell their texts apart, and let something pass."""
    found = {
        key: detection
        for key, method in patient.run.methods.items()
        if isinstance(method.half, Gated) and (detection := method.half.detection())
    }
    if not found:
        yield ok("no gate: every row is steered")
    for key, detection in found.items():
        right, wrong = (detection[f"{kind}_positive_rate"] for kind in ("true", "false"))
        seen = (
            f"{key}: AUROC {detection['auroc']:.3f}, {right:.0%} detected at {wrong:.0%} false "
            f"alarms ({detection['on']} and {detection['off']} held out)"
        )
        if detection["auroc"] < DETECTS:
            yield warning(
                f"{seen}: it hardly tells them apart",
                "python -m steer.gates make with more inputs, other --layers or another --kind",
            )
        elif not detection["true_positive_rate"]:
            yield warning(
                f"{seen}: the gate never opens",
                "calibrate with a higher --fpr, or set gate_threshold",
            )
        else:
            yield ok(seen)


def sign(patient: Patient) -> Iterator[Result]:
    """A positive strength makes the matching answers of the vector's own data likelier."""
    judged = False
    for key, steps in (patient.steps or {}).items():
        towards = _towards(patient.run.methods[key].half)
        for name in patient.data_of(key):
            try:
                rows = patient.rows(name, "train")[:PAIRS]
            except (ValueError, OSError):
                continue
            if towards is None or not all(map(is_pair, rows)):
                continue
            group = Group.of(patient.ready, rows, patient.run.settings.chat, steps)
            judged = True
            yield _verdict(key, towards, measure_effect(patient.ready, [group], name, controls=0))
    if not judged:
        yield unchecked(
            "no vector has pairs to be read that it was made of, or steers one way only"
        )


def _towards(half: Any) -> int | None:
    """1 where multipliers steer towards matching answers, -1 away; None where that is open."""
    given = getattr(half, "multipliers", None) or []
    if not given or getattr(half, "operation", "add") == "project_out":
        return None
    signs = {1 if one > 0 else -1 for one in given if one}
    return signs.pop() if len(signs) == 1 else None


def _verdict(key: str, towards: int, effect: Effect) -> Result:
    found = (
        f"{key}: {effect.mean:+.2f} nats [{effect.low:+.2f}, {effect.high:+.2f}] for the matching "
        f"answers of {effect.pairs} training pairs of {effect.source}"
    )
    low, high = sorted((towards * effect.low, towards * effect.high))
    if high < 0:
        return failure(
            f"{found}: the wrong way round for multipliers of that sign",
            "swap matching and not_matching in the data and make the vector anew, or turn the "
            "sign of multipliers",
        )
    if low <= 0:
        return warning(
            f"{found}: no clear effect",
            "choose another layer or a larger multiplier: python -m steer.search",
        )
    return ok(found)


def stale(patient: Patient) -> Iterator[Result]:
    """The vectors' data is still what they were made of."""
    compared = bad = False
    for key in patient.run.methods:
        for name, entry in patient.data_of(key).items():
            try:
                rows = patient.rows(name, "train")
            except (ValueError, OSError):
                yield unchecked(f"{key}: {not_had(name)}")
                continue
            compared = True
            if rows_digest(rows) != entry.get("sha256"):
                bad = True
                yield warning(
                    f"{key}: made of {entry.get('rows')} rows of {name}, which has other rows now "
                    f"({len(rows)}): the vector is stale",
                    "python vectors_generate.py resume=false makes it anew",
                )
    if compared and not bad:
        yield ok("vectors are of their data as it is now")
