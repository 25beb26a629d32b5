"""What a finding says, in words and numbers, for a page and for a terminal alike."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from steer.method_files import field_names
from steer.models.load import ModelAndChat
from steer.search.settings import SearchSettings

Finding = Mapping[str, Any]
# How much likelier a token must become to be drawn at full strength, in nats.
FULL = 4.0
# Below this share of it, nothing is drawn.
VISIBLE = 0.05
# Keys that decide nothing of a search.
UNSAID = ("device", "resume")
PROGRAM = "python -m steer.search"
# Text that Hydra reads without quotes.
PLAIN = re.compile(r"[\w./-]+", re.ASCII)


def title(finding: Finding) -> str:
    """What the page is about."""
    return f"Steering {finding['dataset']}: {finding['model']['id']}"


def headline(finding: Finding) -> str:
    """The verdict in one line."""
    pick, verdict = finding["pick"], finding["verdict"]
    if pick is None:
        return "No setting works"
    return f"{'It works:' if verdict['works'] else 'No setting works; the best was'} {named(pick)}"


def named(pick: Mapping[str, Any]) -> str:
    """A setting in words."""
    layer = "" if pick["layer"] is None else f", layer {pick['layer']}"
    where = "" if pick["positions"] == "all" else f", {pick['positions']}"
    return f"{pick['method']}{layer}, dose {pick['dose']:g}{where}"


def measured(one: Mapping[str, Any], key: str = "mean") -> str:
    """A figure with its interval."""
    return f"{one[key]:+.2f} [{one['low']:+.2f}, {one['high']:+.2f}]"


def facts(finding: Finding) -> list[tuple[str, str, str]]:
    """Name, value and note of each figure of the verdict."""
    verdict = finding["verdict"]
    effect, turned, damage = verdict["effect"], verdict["reversed"], verdict["damage"]
    if effect is None:
        return []
    found = [
        ("effect", measured(effect), f"nats, on {effect['pairs']} pairs nothing was chosen by"),
        ("pairs moved the wrong way", f"{verdict['wrong_way']:.0%}", "their margin falls"),
    ]
    if turned is not None:
        found.append(("steered the other way", measured(turned), "nats: the sign turned"))
    for kind, values in verdict["controls"].items():
        own, pairs = verdict["on_control_pairs"], verdict["control_pairs"]
        note = f"nats, of {len(values)} on {pairs} pairs, where the pick has {own:+.2f}"
        found.append((kind, f"at most {max(values):+.2f}", note))
    return found + _price(damage) if damage is not None else found


def _price(damage: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    prompts, harmless = damage["prompts"], damage["harmless"]
    ratio, repeats = f"x {damage['perplexity_ratio']:.2f}", f"{damage['repetition']:+.1%}"
    return [
        ("KL on neutral text", f"{damage['kl']:.3f}", "nats a token; 0 changes nothing"),
        ("perplexity of answers", ratio, f"steered / unsteered, {prompts} prompts"),
        ("repetition", repeats, "3-grams that are repeats, more than unsteered"),
        (
            "harmless prompts refused",
            f"{damage['refusal']:+.0%}",
            f"more than unsteered, of {harmless}",
        ),
    ]


def finalists(finding: Finding) -> list[dict[str, Any]]:
    """A row for each setting that came through."""
    return [_finalist(one, finding["pick"]) for one in finding["finalists"]]


def _finalist(one: Mapping[str, Any], pick: Mapping[str, Any] | None) -> dict[str, Any]:
    damage = one["damage"]
    return {
        "name": one["name"],
        "pick": pick is not None and named(pick) == one["name"],
        "effect": measured(one, "effect"),
        "kl": f"{one['kl']:.3f}",
        "perplexity": f"x {damage['perplexity_ratio']:.2f}" if damage else "",
        "repetition": f"{damage['repetition']:+.1%}" if damage else "",
        "refusal": f"{damage['refusal']:+.0%}" if damage else "",
        "good": "yes" if one["in_band"] else "no" if damage else "not answered with",
    }


def limits(finding: Finding) -> str:
    """The price that steering may have."""
    most = finding["limits"]
    repeats, refusal = f"{most['max_repetition']:.0%}", f"{most['max_refusal']:.0%}"
    return (
        f"Limits: KL {most['max_kl']:g} nats a token, perplexity x "
        f"{most['max_perplexity_ratio']:g}, repetition +{repeats}, refusal of harmless prompts "
        f"+{refusal}."
    )


def tokens(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each token of a steered answer, to be drawn.

    `text`; `kind`, up, down or nothing; `strength`, 0 to 1; `note`; `first`, whether it is the
    first that differs from the unsteered answer.
    """
    found = []
    for number, token in enumerate(example["tokens"]):
        steered, unsteered = token["steered"], token["unsteered"]
        shift = steered - unsteered
        strength = min(abs(shift) / FULL, 1.0)
        one = {
            "text": token["text"],
            "kind": ("up" if shift > 0 else "down") if strength >= VISIBLE else "",
            "strength": round(strength, 2),
            "note": f"log P {unsteered:.2f} unsteered, {steered:.2f} steered ({shift:+.2f})",
            "first": number == example["first_difference"],
        }
        found.append(one)
    return found


def commands(finding: Finding, defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to type to search again, and to use what was found.

    Args:
        finding: As above.
        defaults: Key -> what the shipped config says.
    """
    given = dict(finding["settings"])
    more, usual = given.pop("more"), asdict(SearchSettings.of(defaults)[0])
    changed = {k: v for k, v in given.items() if k not in UNSAID and v != usual[k]}
    again = {"steer_train_dataset": "", **changed, **more}
    again["steer_train_dataset"] = finding["source"]
    found = [("Search again:", _typed(PROGRAM, again))]
    if finding["folder"] is not None:
        folder = finding["folder"]
        use = {
            "model_name_or_path": given["model_name_or_path"],
            # Another model or prompt is not what was judged.
            **{k: v for k, v in changed.items() if k in field_names(ModelAndChat)},
            "apply_steer_hparam_paths": [f"{folder}/apply_{finding['pick']['method']}.yaml"],
            "steer_vector_load_dir": [folder],
        }
        found.append(("Answer with the pick:", _typed("python vectors_apply.py", use)))
    return found


def _typed(program: str, values: Mapping[str, Any]) -> str:
    words = [shlex.quote(f"{key}={_spelt(value)}") for key, value in values.items()]
    return " ".join([program, *words])


def _spelt(value: Any) -> str:
    """As Hydra reads it."""
    if isinstance(value, list):
        return f"[{','.join(map(_spelt, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_spelt(one)}' for key, one in value.items())}}}"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return QuotedString(value, Quote.double).with_quotes()
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def notes(finding: Finding) -> list[str]:
    """What this finding rests on."""
    data, budget, model = finding["data"], finding["budget"], finding["model"]
    unit, tried = budget["unit"], len(finding["tried"])
    phases = ", ".join(f"{name} {spent:.0f}" for name, spent in budget["phases"].items())
    peak = f"; peak memory {finding['peak_mib']:.0f} MiB" if finding["peak_mib"] else ""
    return [
        f"{data['train']} pairs to learn from, {data['select']} to choose by, {data['verdict']} "
        f"for the verdict ({data['source']}).",
        f"{tried} settings tried; budget {budget['total']:.0f} {unit}, spent "
        f"{budget['spent']:.0f}: {phases}.",
        f"Model {model['id']}, {model['architecture']}, {model['num_layers']} layers, "
        f"{model['dtype']}{peak}.",
    ]
