"""The pages that users read: every link leads somewhere, and every method has its section."""

import re
from pathlib import Path

import pytest

from steer import METHODS_CLASS_DICT
from steer.build import read_yaml
from steer.datasets.names import FIELDS

ROOT = Path(__file__).resolve().parent.parent
DATA_SETS = ROOT / "hparams/Steer/dataset.md"
NOTEBOOKS = ROOT / "tutorial-notebooks/README.md"
PAGES = [ROOT / "README.md", DATA_SETS, NOTEBOOKS, *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Headings as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", METHODS_CLASS_DICT)
def test_a_method_has_a_section_and_settings(name: str):
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {name}: ", text, flags=re.MULTILINE)
    assert list((ROOT / "hparams" / "Steer" / f"{name}_hparams").glob("*.yaml"))


def test_every_data_set_stands_in_the_table_of_its_section():
    formats = read_yaml(ROOT / "hparams/Steer/dataset_format.yaml", "format file")
    tables = DATA_SETS.read_text(encoding="utf-8").split("(section `")
    for section, entries in formats.items():
        (table,) = [part for part in tables if part.startswith(f"{section}`)")]
        lines = [line for line in table.splitlines() if line.startswith("| `")]
        for name, entry in entries.items():
            if name == "merge":
                continue
            (line,) = [line for line in lines if f"`{name}`" in line.split("|")[1]]
            assert f"`{entry['file_path']}`" in line
            assert f"| {', '.join(entry['field_names'])} |" in line
            assert entry.get("hf_path", "") in line
            assert entry.get("licence", "MIT") in line
            assert line.endswith("| yes |" if entry.get("gated") else "| no |")


def test_fields_of_own_data_are_found_as_the_page_says():
    text = DATA_SETS.read_text(encoding="utf-8")
    for ours, names in FIELDS.items():
        assert f"| `{ours}` | {', '.join(f'`{name}`' for name in names)} |" in text
