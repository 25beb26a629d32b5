"""What a finding says, in words and numbers, for a page and for a terminal alike."""

from collections.abc import Mapping, Sequence
from typing import Any

Finding = Mapping[str, Any]
# How much likelier a token must become to be drawn at full strength, in nats.
FULL = 4.0
PROGRAM = "python -m steer.search"


def title(finding: Finding) -> str:
    """What the page is about."""
    return f"Steering {finding['dataset']}: {finding['model']['id']}"


def headline(finding: Finding) -> str:
    """The verdict in one line."""
    pick, verdict = finding["pick"], finding["verdict"]
    if pick is None:
        return "No setting works"
    return (
        f"It works: {named(pick)}"
        if verdict["works"]
        else f"No setting works: the best one was {named(pick)}"
    )


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
        beaten = sum(verdict["on_control_pairs"] > value for value in values)
        note = f"beaten, at most {max(values):+.2f} nats on {verdict['control_pairs']} pairs, where the pick has {verdict['on_control_pairs']:+.2f}"
        found.append((kind, f"{beaten} of {len(values)}", note))
    if damage is not None:
        found += [
            ("KL on neutral text", f"{damage['kl']:.3f}", "nats a token; 0 changes nothing"),
            (
                "perplexity of answers",
                f"x {damage['perplexity_ratio']:.2f}",
                f"steered / unsteered, {damage['prompts']} prompts",
            ),
            (
                "repetition",
                f"{damage['repetition']:+.1%}",
                "3-grams that are repeats, more than unsteered",
            ),
            (
                "harmless prompts refused",
                f"{damage['refusal']:+.0%}",
                f"more than unsteered, of {damage['harmless']}",
            ),
        ]
    return found


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
    return (
        f"Limits: KL {most['max_kl']:g} nats a token, perplexity x {most['max_perplexity_ratio']:g}, "
        f"repetition +{most['max_repetition']:.0%}, refusal of harmless prompts +{most['max_refusal']:.0%}."
    )


def band(finding: Finding) -> str:
    """The good settings, in one line."""
    names = [one["name"] for one in finding["finalists"] if one["in_band"]]
    return "; ".join(names) if names else "none"


def tokens(example: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each token of a steered answer: `text`, `kind` (up, down or none), `strength`, `note`, `first`."""
    found = []
    for number, token in enumerate(example["tokens"]):
        shift = token["steered"] - token["unsteered"]
        strength = min(abs(shift) / FULL, 1.0)
        note = f"log P {token['unsteered']:.2f} unsteered, {token['steered']:.2f} steered ({shift:+.2f})"
        kind = ("up" if shift > 0 else "down") if strength >= 0.05 else ""
        first = number == example["first_difference"]
        found.append(
            {
                "text": token["text"],
                "kind": kind,
                "strength": f"{0.65 * strength:.2f}",
                "note": note,
                "first": first,
            }
        )
    return found


def commands(finding: Finding, defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What to type to search again, and to use what was found.

    Args:
        finding: As above.
        defaults: Key -> what the shipped config says.
    """
    given = finding["settings"]
    changed = {
        k: v
        for k, v in given.items()
        if k not in ("more", "device", "resume") and v != defaults.get(k, v)
    }
    changed |= given["more"] | {"steer_train_dataset": [finding["dataset"]]}
    if finding["source"] != finding["dataset"]:
        changed["steer_train_dataset"] = [finding["source"]]
    words = [PROGRAM, *(f"{key}={_spelt(value)}" for key, value in changed.items())]
    found = [("Search again:", " ".join(words))]
    if finding["folder"] is not None:
        method, folder = finding["pick"]["method"], finding["folder"]
        apply = f"python vectors_apply.py model_name_or_path={given['model_name_or_path']} apply_steer_hparam_paths=[{folder}/apply_{method}.yaml] steer_vector_load_dir=[{folder}] report=full"
        found.append(("Answer with the pick:", apply))
    return found


def _spelt(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(str, value)) + "]"
    return {None: "null", True: "true", False: "false", "": "''"}.get(value, str(value))


def notes(finding: Finding) -> list[str]:
    """What the finding rests on."""
    data, budget, model = finding["data"], finding["budget"], finding["model"]
    tried, pairs = (
        len(finding["tried"]),
        f"{data['train']} pairs to learn from, {data['select']} to choose by, {data['verdict']} for the verdict ({data['source']})",
    )
    unit = budget["unit"]
    found = [
        f"{pairs}; no question is in two of them. The pick's vector was made anew of the first two.",
        f"{tried} settings tried by successive halving; budget {budget['total']:.0f} {unit}, spent {budget['spent']:.0f}.",
        "Effect: change of log P(matching answer) - log P(not matching), in nats a pair; 95 % intervals by bootstrap over pairs.",
        "Dose: length of what is added over the layer's median residual norm; of methods that add no vector, a multiple of their method file's strength.",
        "Controls: random vectors of the same length; the same method taught by pairs half of which are turned round. It works where the interval is above 0, every control is beaten, and the price is within the limits.",
        f"Model {model['id']}, {model['architecture']}, {model['num_layers']} layers, {model['dtype']}; peak memory {finding['peak_mib']:.0f} MiB.",
    ]
    return found


def phases(finding: Finding) -> Sequence[tuple[str, float]]:
    """What each part of the search took, in its budget's unit."""
    return list(finding["budget"]["phases"].items())
