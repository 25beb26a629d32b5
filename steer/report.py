"""The steering report: proof that a run steered, and what it cost."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from steer.effect import Effect
from steer.models import EditPrompt, EditTensor, Intervention
from steer.models.interventions import LOGITS, Place, cancels
from steer.models.tally import Tally

log = logging.getLogger(__name__)

NOT_MEASURED = "not measured"
# Of n pairs that a vector does nothing to, all move one way with a chance of 2 * 0.5 ** n, and then
# the interval holds no 0: below this many more often than 1 time in 20.
FEWEST_PAIRS = 6


@dataclass
class SteeringReport(JupyterMixin):
    """What a run's steering did; as tables where a notebook, or `rich.print`, shows it.

    Attributes:
        layers: Layer, or "head input" or "logits" -> passes, tokens, tokens_changed, sinks, dose
            (mean |change| / |what was there|).
        prompt: Steering prompts in force.
        effect: On held-out pairs.
        kl: Mean KL(unsteered || steered) on neutral text, in nats a token.
        perplexity_ratio: Of steered over unsteered answers, under the untouched model.
        why_not: Figure -> why it was not measured.
    """

    layers: dict[Place, dict[str, Any]] = field(default_factory=dict)
    prompt: list[str] = field(default_factory=list)
    effect: Effect | None = None
    kl: float | None = None
    perplexity_ratio: float | None = None
    why_not: dict[str, str] = field(default_factory=dict)

    def __rich__(self) -> RenderableType:
        return render(self)

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "SteeringReport":
        """The report whose `as_dict` gave `values`; JSON has made text of the layers' numbers."""
        given = values["layers"].items()
        layers = {int(k) if k.isdecimal() else k: counts for k, counts in given}
        effect = Effect(**values["effect"]) if values["effect"] else None
        known: dict[str, Any] = {**values, "layers": layers, "effect": effect}
        return cls(**known)


def basic_report(tally: Tally, interventions: Sequence[Intervention]) -> SteeringReport:
    """Counts and dose of each layer.

    A hook that fired and changed nothing is an error, as the result would pass for a steered one.
    Not so where a gate decided it, nor where the layer's additions sum to nothing: then the
    unsteered answer is the right one, and rounding alone decides whether a token counts as changed.
    That is said in a warning. A hook that never fired is an error in every case.

    Raises:
        RuntimeError: A layer was to be steered, and nothing of it changed.
    """
    report = SteeringReport(layers={n: tally[n].summary() for n in sorted(tally, key=_order)})
    report.prompt = [step.text for step in interventions if isinstance(step, EditPrompt)]
    for place, edits in _edits_by_place(interventions).items():
        counts = report.layers.get(place, {"passes": 0, "tokens_changed": 0, "gated": False})
        cancelled = cancels(edits)
        idle = counts["tokens_changed"] == 0 and not counts["gated"] and not cancelled
        if counts["passes"] == 0 or idle:
            raise RuntimeError(
                f"{_named(place)} was to be steered, but its hook fired {counts['passes']} times "
                f"and changed {counts['tokens_changed']} tokens: the result is not a steered one"
            )
        if cancelled:
            log.warning("%s: what is added sums to nothing, so it is not steered", _named(place))
    return report


def covers(kept: Mapping[str, Any] | None, level: str, steered: bool) -> bool:
    """Whether the report kept with results (`as_dict`) says what one of `level` would.

    Args:
        kept: None where there was none.
        level: `off`, `basic` or `full`.
        steered: Whether anything was in force.
    """
    if kept is None:
        return level == "off"
    return level != "full" or not steered or kept["kl"] is not None


def _order(place: Place) -> tuple[bool, int]:
    """Blocks by number, then the head."""
    return (True, place == LOGITS) if isinstance(place, str) else (False, place)


def _named(place: Place) -> str:
    return f"the {place}" if isinstance(place, str) else f"layer {place}"


def _edits_by_place(interventions: Sequence[Intervention]) -> dict[Place, list[EditTensor]]:
    found: dict[Place, list[EditTensor]] = {}
    for step in interventions:
        if isinstance(step, EditTensor) and not step.is_idle():
            found.setdefault(step.place, []).append(step)
    return {place: found[place] for place in sorted(found, key=_order)}


def render(report: SteeringReport) -> RenderableType:
    """The report as tables for a terminal."""
    parts: list[RenderableType] = []
    if report.layers or not report.prompt:
        parts = [_counts(report), Text(_note(report), style="dim"), *map(Text, _gates(report))]
    parts += [Text(f"steering prompt: {text}") for text in report.prompt]
    figures = Table("figure", "value", "what it says")
    for row in _figures(report):
        figures.add_row(*row)
    return Group(*parts, figures)


def _counts(report: SteeringReport) -> Table:
    layers = Table("layer", "passes", "tokens", "changed", "dose", title="Steering report")
    for layer, c in report.layers.items():
        layers.add_row(
            str(layer),
            str(c["passes"]),
            str(c["tokens"]),
            str(c["tokens_changed"]),
            f"{c['dose']:.1%}",
        )
    return layers


def _gates(report: SteeringReport) -> list[str]:
    """A line for each layer with gates: how much they let pass."""
    return [
        f"layer {layer}: the gate let {c[key][0]} of {c[key][1]} {kind} pass"
        for layer, c in report.layers.items()
        for key, kind in (("gate_rows", "rows"), ("gate_tokens", "tokens"))
        if key in c
    ]


def _note(report: SteeringReport) -> str:
    note = "dose: mean |change| / |residual|, attention sinks left out"
    return f"{note}; {report.why_not['layers']}" if "layers" in report.why_not else note


def _figures(report: SteeringReport) -> list[tuple[str, str, str]]:
    rows = [_effect_row(report), *_control_rows(report)]
    kl = _missing(report, "kl") if report.kl is None else f"{report.kl:.3f} nats/token"
    rows.append(("KL on neutral text", kl, "how far unrelated predictions move; 0 is not at all"))
    ratio = report.perplexity_ratio
    shown = _missing(report, "perplexity_ratio") if ratio is None else f"x {ratio:.2f}"
    rows.append(("perplexity of answers", shown, "steered / unsteered, under the untouched model"))
    return rows


def _effect_row(report: SteeringReport) -> tuple[str, str, str]:
    effect = report.effect
    if effect is None:
        return "effect on held-out pairs", _missing(report, "effect"), ""
    if effect.pairs < FEWEST_PAIRS:
        verdict = f"too few pairs to tell: give {FEWEST_PAIRS} at least"
    elif effect.low > 0:
        verdict = "matching answers become likelier"
    elif effect.high < 0:
        verdict = "matching answers become less likely"
    else:
        verdict = "no clear effect: the 95 % interval holds 0"
    return f"effect on {effect.pairs} held-out pairs", str(effect), f"{verdict} ({effect.source})"


def _control_rows(report: SteeringReport) -> list[tuple[str, str, str]]:
    if report.effect is None or not report.effect.controls:
        return []
    effect = abs(report.effect.on_control_pairs)
    strongest = max(map(abs, report.effect.controls))
    beaten = sum(effect > abs(control) for control in report.effect.controls)
    number, pairs = len(report.effect.controls), report.effect.control_pairs
    # A resumed run may have counted no pass of its layers.
    prompts_only = bool(report.prompt) and not report.layers
    value = f"at most {strongest:.2f} nats"
    return [
        (
            f"{number} random {'prompts, same length' if prompts_only else 'vectors, same norm'}",
            value,
            f"the effect is larger than {beaten} of {number} (on {pairs} pairs)",
        )
    ]


def _missing(report: SteeringReport, figure: str) -> str:
    reason = report.why_not.get(figure)
    return f"{NOT_MEASURED} ({reason})" if reason else NOT_MEASURED
