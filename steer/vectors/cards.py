"""A vector's card: what its metadata says, as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steer.files import project_root
from steer.vectors.catalogue import Entry

UNJUDGED = "nobody has judged it: no pairs were held out"


def card(entry: Entry, repo: str | None = None) -> str:
    """The card of an entry, ending in a line break.

    Args:
        entry: The entry.
        repo: Where the card is to be read, on the Hub: its use begins there.
    """
    facts = entry.facts
    parts = [f"# {entry.name}", str(facts.get("does", "")), _table(rows(entry))]
    if reasons := entry.verdict.get("reasons"):
        parts.append("To be known:\n\n" + "\n".join(f"- {reason}" for reason in reasons))
    if facts.get("recommended"):
        parts.append(_use(entry, repo))
    if facts.get("examples"):
        parts.append(_examples(facts["examples"]))
    parts += [str(facts[key]) for key in ("note", "licence") if facts.get(key)]
    return "\n\n".join(part for part in parts if part) + "\n"


def rows(entry: Entry) -> list[tuple[str, str]]:
    """What there is to say, as pairs of a name and a value."""
    return [*_origin(entry), *_dose(entry.facts), *_verdict(entry.verdict)]


def _origin(entry: Entry) -> Iterator[tuple[str, str]]:
    facts = entry.facts
    yield "model", entry.model
    yield "method", str(facts.get("method", "unknown"))
    yield "decoder block", ", ".join(map(str, entry.layers)) or "unknown"
    yield "shape", " and ".join({str(one.get("shape")) for one in entry.about.values()})
    if data := facts.get("data"):
        yield "made of", f"{data['rows']} pairs of {data['name']}"
    if inputs := facts.get("inputs"):
        yield "made of", ", ".join(inputs)
    for one in facts.get("features", ()):
        seen = "; ".join(one.get("descriptions", ()))
        yield "feature", f"{one['id']} at {one['strength']:.1f}: {seen}"
    if source := facts.get("hub"):
        yield "from", f"{source['repo']} at {source['revision']}"


def _dose(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if values := facts.get("recommended"):
        yield "dose", dose(values)
        yield "tokens steered", str(values.get("positions", "all"))


def dose(values: Mapping[str, Any]) -> str:
    """The strength that an applying method's file says, in words."""
    multipliers = ", ".join(f"{one:g}" for one in values.get("multipliers", ()))
    relative = values.get("strength") == "relative"
    return f"{multipliers} of the residual norm" if relative else f"multiplier {multipliers}"


def _verdict(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    effect = verdict.get("effect")
    if not effect:
        yield "verdict", UNJUDGED
        return
    yield "verdict", "works" if verdict["works"] else "does not work"
    yield f"effect on {effect['pairs']} unseen pairs", f"{interval(effect)} nats a pair"
    for name, one in verdict.get("by_data", {}).items():
        yield f"effect on those of {name}", f"{interval(one)} nats a pair"
    if verdict.get("wrong_way") is not None:
        yield "pairs moved the wrong way", f"{verdict['wrong_way']:.0%}"
    if verdict.get("reversed"):
        yield "with its sign turned", f"{interval(verdict['reversed'])} nats a pair"
    own = verdict["on_control_pairs"]
    for kind, values in verdict["controls"].items():
        smaller = sum(value <= own for value in values)
        compared = f"at most {max(values):+.2f} where it has {own:+.2f}"
        yield f"larger than {kind}", f"{smaller} of {len(values)} ({compared})"
    if price := verdict.get("damage"):
        yield "KL on neutral text", f"{price['kl']:.3f} nats a token"
        yield "perplexity of answers", f"x {price['perplexity_ratio']:.2f}"
        yield "repeated 3-grams", f"{price['repetition']:+.1%}"
        yield "harmless prompts refused", f"{price['refusal']:+.0%}"


def interval(effect: Mapping[str, float]) -> str:
    """A mean with its 95 % interval."""
    return f"{effect['mean']:+.2f} [{effect['low']:+.2f}, {effect['high']:+.2f}]"


def table(entries: Sequence[Entry]) -> str:
    """Entries of a library as a Markdown table, ending in a line break."""
    heads = (
        "name",
        "what it makes likelier",
        "method, block",
        "dose",
        "effect (nats a pair)",
        "KL",
    )
    lines = [_columns(heads), "|" + "---|" * len(heads), *map(_columns, map(_line, entries))]
    return "\n".join(lines) + "\n"


def _columns(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _line(entry: Entry) -> list[str]:
    facts, verdict = entry.facts, entry.verdict
    where = f"{facts['method']}, {', '.join(map(str, entry.layers))}"
    effect = f"{interval(verdict['effect'])} ({verdict['effect']['pairs']} pairs)"
    strength, price = dose(facts["recommended"]), f"{verdict['damage']['kl']:.2f}"
    return [f"`{entry.name}`", facts["does"], where, strength, effect, price]


def _table(pairs: list[tuple[str, str]]) -> str:
    lines = [_columns([name, value.replace("|", r"\|")]) for name, value in pairs]
    return "\n".join(["| | |", "|---|---|", *lines])


def _use(entry: Entry, repo: str | None) -> str:
    method, folder = entry.facts["method"], _shown(entry.folder)
    first = ""
    if repo is not None:
        folder = f"my/{repo.rpartition('/')[2]}"
        first = f"python -m steer.vectors pull {repo} {folder}\n"
    return (
        f"## Use\n\n```bash\n{first}python vectors_apply.py \\\n"
        f'  "apply_steer_hparam_paths=[{folder}/apply_{method}.yaml]" \\\n'
        f'  "steer_vector_load_dir=[{folder}]"\n```'
    )


def _shown(folder: Path) -> str:
    """A folder as a user of the project names it."""
    whole, root = folder.resolve(), project_root()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else str(folder)


def _examples(examples: list[Mapping[str, str]]) -> str:
    shown = "\n\n".join(
        f"> {one['input']}\n\n"
        + "\n".join(f"- {side}: {_one_line(one[side])}" for side in ("unsteered", "steered"))
        for one in examples
    )
    return f"## Answers, the first words\n\n{shown}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
