"""Draw the pictures of docs/concepts.md: `python docs/figures/concepts.py`.

Each is an SVG with a background of its own; its colours follow the reader's light or dark setting.
"""

from collections.abc import Iterable
from pathlib import Path
from random import Random

IMAGES = Path(__file__).resolve().parents[1] / "images"
WIDTH = 760
HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
  aria-label="{says}">
<style>
svg {{
  --ink: #1b2733; --soft: #5a6875; --line: #8795a1; --card: #ffffff; --box: #eef3f7;
  --up: #1f6fb5; --down: #b3541e
}}
@media (prefers-color-scheme: dark) {{ svg {{
  --ink: #e6ebf0; --soft: #aab4be; --line: #7a8793; --card: #1e2229; --box: #2a3039;
  --up: #6db3f2; --down: #f0a35e
}} }}
text {{ font: 15px system-ui, sans-serif; fill: var(--ink); text-anchor: middle }}
.soft {{ fill: var(--soft); font-size: 13px }}
.left {{ text-anchor: start }}
.code {{ font-family: monospace; font-size: 14px }}
.box {{ fill: var(--box); stroke: var(--line) }}
.line {{ stroke: var(--line); stroke-width: 2; fill: none }}
.arrow {{ stroke: var(--up); stroke-width: 3; fill: none }}
.up {{ fill: var(--up) }}
.down {{ fill: var(--down) }}
.chosen {{ fill: var(--up); stroke: var(--up) }}
.on {{ fill: var(--card) }}
</style>
<rect width="{width}" height="{height}" rx="10" fill="var(--card)"/>
<defs>
<marker id="line" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
  orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--line)"/></marker>
<marker id="up" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="5" markerHeight="5"
  orient="auto"><path d="M0 0 8 4 0 8z" fill="var(--up)"/></marker>
</defs>
"""


def box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    """A rounded rectangle."""
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def line(path: str, kind: str = "line") -> str:
    """A path that ends in an arrow head."""
    head = "up" if kind == "arrow" else "line"
    return f'<path class="{kind}" d="{path}" marker-end="url(#{head})"/>'


def dot(x: float, y: float, kind: str, radius: float = 4.5) -> str:
    """A point."""
    return f'<circle class="{kind}" cx="{x:.0f}" cy="{y:.0f}" r="{radius}" fill-opacity="0.75"/>'


def run() -> tuple[int, str, list[str]]:
    """What a run does, from pairs to the report."""
    steps = [
        ("pairs", "two answers", "to one question"),
        ("vector", "what tells", "them apart"),
        ("intervention", "where, what,", "how strongly"),
        ("answers", "steered, beside", "unsteered"),
        ("report", "did it act, did it", "work, its price"),
    ]
    wide, gap, parts = 124, 28, []
    for number, (name, *said) in enumerate(steps):
        x = 14 + number * (wide + gap)
        parts += [box(x, 34, wide, 92), text(x + wide / 2, 62, name)]
        parts += [text(x + wide / 2, 86 + 18 * n, words, "soft") for n, words in enumerate(said)]
        if number:
            parts.append(line(f"M{x - gap + 3} 80H{x - 3}"))
    return 160, "A run: pairs, vector, intervention, answers, report", parts


def difference() -> tuple[int, str, list[str]]:
    """Activations of both sides of the pairs, and the difference of their means."""
    random, parts = Random(3), []
    down, up = (250.0, 182.0), (500.0, 102.0)
    for (x, y), kind in ((down, "down"), (up, "up")):
        parts += [dot(x + random.gauss(0, 44), y + random.gauss(0, 22), kind) for _ in range(26)]
    parts += [
        line(f"M{down[0]} {down[1]}L{up[0] - 4} {up[1] + 1}", "arrow"),
        dot(*down, "down", 8),
        text(380, 118, "v"),
        text(150, 262, "unwanted answers", "soft"),
        text(668, 110, "wanted answers", "soft"),
        text(380, 290, "each point: one answer, read at one block; large: the mean", "soft"),
    ]
    return 310, "The mean difference of activations on wanted and unwanted answers", parts


def stream() -> tuple[int, str, list[str]]:
    """The residual stream through the blocks, and what is added to it behind one."""
    parts = [text(52, 68, "tokens", "soft"), text(712, 68, "next token", "soft")]
    blocks = [(110, "block 0"), (240, "block 14"), (370, "block 15"), (560, "block 29")]
    parts += [line("M20 92H732")]
    for x, name in blocks:
        parts += [box(x, 62, 84, 60), text(x + 42, 97, name)]
    parts += [text(217, 84, "..."), text(546, 84, "...")]
    parts += [
        '<circle cx="486" cy="92" r="13" class="chosen"/>',
        text(486, 97.5, "+", "on"),
        line("M486 166V108", "arrow"),
        text(486, 190, "strength x v"),
        text(486, 212, "at the tokens that are steered", "soft"),
        text(200, 190, "residual stream: one vector a token,", "soft"),
        text(200, 208, "to which every block adds its part", "soft"),
    ]
    return 236, "A vector is added to the residual stream behind block 15", parts


def positions() -> tuple[int, str, list[str]]:
    """Which tokens each setting of `positions` steers."""
    tokens = ["The", "new", "bus", "line", "is", "a", "joy", "."]
    last = 4  # tokens of the prompt
    chosen = {
        "all": range(8),
        "prompt": range(last),
        "from_prompt_end": range(last - 1, 8),
        "generated": range(last, 8),
    }
    left, wide, parts = 190, 68, []
    parts += [
        text(left + 2 * wide, 26, "prompt", "soft"),
        text(left + 6 * wide, 26, "answer", "soft"),
    ]
    for row, (name, steered) in enumerate(chosen.items()):
        y = 40 + 44 * row
        parts.append(text(18, y + 23, name, "code left"))
        for n, token in enumerate(tokens):
            kind = "chosen" if n in steered else "box"
            parts += [box(left + wide * n + 3, y, wide - 6, 34, kind)]
            parts += [text(left + wide * (n + 0.5), y + 22, token, "on" if n in steered else "")]
    parts.append(
        line(f"M{left + last * wide} 34V{40 + 44 * 4}").replace(' marker-end="url(#line)"', "")
    )
    return 230, "Tokens steered by positions: all, prompt, from_prompt_end, generated", parts


def written(name: str, height: int, says: str, parts: Iterable[str]) -> None:
    """Write one picture."""
    head = HEAD.format(width=WIDTH, height=height, says=says)
    (IMAGES / f"{name}.svg").write_text(head + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


if __name__ == "__main__":
    for draw in (run, difference, stream, positions):
        written(draw.__name__, *draw())
