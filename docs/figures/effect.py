"""Draw what strength does: the README's picture, measured on the embedded model.

    python docs/figures/effect.py             measure, write docs/images/effect.json, draw
    python docs/figures/effect.py --drawn     draw what that file says

The sentiment vector that comes with the project, added at its layer with strengths from -4 to 4:
effect on the 24 held-out pairs with its 95 % interval, the range of 20 random vectors of the same
norm (on 12 pairs), and KL to the unsteered model on neutral text. Some three minutes on two cores.
"""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parents[1]
FIGURES = DOCS / "images/effect.json"
VECTOR = "vectors/examples/SmolLM2-135M-Instruct/sentiment/caa_vector"
LAYER, STRENGTHS = 15, [-4, -3, -2, -1, 0, 1, 2, 3, 4]

BLUE, ORANGE = "#3b8ad9", "#e08a1e"
# Stand for colours that follow the reader's light or dark setting.
INK, LINE, CARD = "#112233", "#445566", "#fefefe"
THEME = """\
<style>
svg { --ink: #1b2733; --line: #8795a1; --card: #ffffff }
@media (prefers-color-scheme: dark) { svg { --ink: #e6ebf0; --line: #7a8793; --card: #1e2229 } }
</style>
"""
STYLE = {
    "svg.hashsalt": "effect",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "figure.facecolor": CARD,
    "legend.frameon": False,
}


def measured(strengths: Sequence[int]) -> list[dict[str, Any]]:
    """The figures at each strength; random vectors at the even ones alone."""
    import steer
    from steer.datasets import DatasetLoader
    from steer.effect import Group, divergence, measure_effect
    from steer.models import Add, ChatFormat, EditLayer

    model = steer.ModelSource(device="cpu", dtype="float32").load()
    vector = steer.load_vectors(VECTOR, [f"layer_{LAYER}"])[f"layer_{LAYER}"]
    chat = ChatFormat(use_chat_template=True)
    rows = DatasetLoader().load_file("sentiment", "valid")
    neutral = [str(row["text"]) for row in DatasetLoader().load_file("neutral", "valid")]
    found = []
    for strength in strengths:
        controls = 0 if strength % 2 else 20
        steps = [EditLayer(LAYER, Add(vector, float(strength)))]
        group = Group.of(model, rows, chat, steps)
        effect = measure_effect(model, [group], "sentiment", controls)
        found.append(
            {
                "strength": strength,
                **{key: round(getattr(effect, key), 3) for key in ("mean", "low", "high")},
                "random": [round(end(effect.controls), 3) for end in (min, max) if controls],
                "kl": round(divergence(model, neutral, steps), 4),
            }
        )
    return found


def drawn(points: list[dict[str, Any]]) -> str:
    """An SVG with a background of its own, readable on light and dark pages."""
    strengths = [point["strength"] for point in points]
    with matplotlib.rc_context(STYLE):
        sheet = Figure((8.0, 3.3), layout="constrained")
        left, right = sheet.subplots(1, 2, width_ratios=[3, 2])
        compared = [point for point in points if point["random"]]
        left.fill_between(
            [p["strength"] for p in compared],
            *zip(*(p["random"] for p in compared), strict=True),
            color=LINE,
            alpha=0.35,
            lw=0,
            label="20 random vectors of the same length",
        )
        left.fill_between(
            strengths, [p["low"] for p in points], [p["high"] for p in points], color=BLUE,
            alpha=0.25, lw=0,
        )  # fmt: skip
        left.plot(
            strengths, [p["mean"] for p in points], "o-", color=BLUE, label="sentiment vector, 95 %"
        )
        left.axhline(0, color=LINE, lw=0.8)
        left.set(xlabel="strength", title="effect on 24 held-out pairs (nats a pair)")
        sheet.legend(loc="outside lower left", ncols=2, fontsize=9)
        right.plot(strengths, [p["kl"] for p in points], "o-", color=ORANGE)
        right.set(xlabel="strength", title="price: KL (nats a token)", ylim=(0, None))
        buffer = io.StringIO()
        sheet.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    for colour, name in ((INK, "ink"), (LINE, "line"), (CARD, "card")):
        text = text.replace(colour, f"var(--{name})")
    start = text.index("<svg")
    end = text.index(">", start) + 1
    return text[start:end] + "\n" + THEME + text[end:]


if __name__ == "__main__":
    if "--drawn" not in sys.argv:
        FIGURES.write_text(json.dumps(measured(STRENGTHS), indent=1) + "\n", encoding="utf-8")
    points = json.loads(FIGURES.read_text(encoding="utf-8"))
    FIGURES.with_suffix(".svg").write_text(drawn(points), encoding="utf-8")
