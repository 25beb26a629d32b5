"""The report as one HTML file that needs nothing else, and its plots as PNG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from steer.build import read_yaml
from steer.files import writing
from steer.search import wording
from steer.search.plots import as_png, as_svg, can_draw, drawings

PAGE = "report.html"
CONFIG = "hparams/Steer/search.yaml"
CAPTIONS = {
    "pareto": "Every setting: what it does against what it costs. Bars are 95 % intervals of those "
    "that came through.",
    "heat map": "Layer by dose, on the pairs that each setting was tried on; x is over the limit "
    "on KL, the ring is the pick.",
    "controls": "The pick on unseen pairs, its sign turned, and the controls.",
}


def write_page(finding: Mapping[str, Any], folder: Path) -> Path:
    """Write `report.html` and the plots into `folder`; the page's path."""
    plots = []
    for name, draw in drawings(finding).items() if can_draw() else ():
        plots.append((name, CAPTIONS[name], as_svg(draw, name)))
        with writing(folder / f"{name.replace(' ', '_')}.png", "wb") as file:
            file.write(as_png(draw, name))
    examples = [{**one, "tokens": wording.tokens(one)} for one in finding["examples"]]
    budget = finding["budget"]
    text = rendered(
        "finding.html.j2",
        title=wording.title(finding),
        subtitle=f"{len(finding['tried'])} settings, {budget['spent']:.0f} {budget['unit']}",
        headline=wording.headline(finding),
        verdict=finding["verdict"],
        facts=wording.facts(finding),
        plots=plots,
        finalists=wording.finalists(finding),
        limits=wording.limits(finding),
        examples=examples,
        commands=wording.commands(finding, read_yaml(CONFIG, "config")),
        notes=wording.notes(finding),
    )
    return write_text(folder / PAGE, text)


def rendered(template: str, **values: Any) -> str:
    """A page of this package; values are escaped."""
    places = Environment(
        loader=PackageLoader("steer.search", "."), autoescape=select_autoescape(["j2"])
    )
    return places.get_template(template).render(**values)


def write_text(path: Path, text: str) -> Path:
    """Write `text`, whole or not at all."""
    with writing(path) as file:
        file.write(text)
    return path
