"""The documentation lists all there is: public names, modules, floors."""

import re
import tomllib
from pathlib import Path

import pytest

import steer
import steer.vectors

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("page", "names"), [("index", steer), ("vectors", steer.vectors)])
def test_every_public_name_is_on_its_page(page: str, names):
    text = (ROOT / f"docs/api/{page}.md").read_text(encoding="utf-8")
    assert set(names.__all__) - set(re.findall(r"\w+", text)) == set()


def test_the_tree_has_every_module():
    modules = [path.name for path in (ROOT / "steer").glob("*.py")]
    assert len(modules) > 20
    assert [name for name in modules if not re.search(rf"\b{name}\b", ARCHITECTURE)] == []


def test_the_floors_are_those_that_are_checked():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (floors,) = (one["layers"] for one in contracts if one["type"] == "layers")
    shown = ARCHITECTURE.split("## Floors")[1].split("```")[1]
    assert [sorted(re.findall(r"\w+", line)) for line in shown.split("\n")[1:-1]] == [
        sorted(re.findall(r"\w+", floor)) for floor in floors
    ]
