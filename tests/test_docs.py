"""The pages that users read: links, sections, tables, and the site that is made of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DATA_SETS, PAGES, ROOT, name_of

from steer import METHODS_CLASS_DICT
from steer.build import read_yaml
from steer.datasets.names import FIELDS

SITE = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
# What a browser asks for by itself when a page is opened.
ASKED_FOR = re.compile(r"""(?:<link[^>]*?href|<(?:img|script|iframe)[^>]*?src)=["']?([^"'> ]+)""")


def anchors(page: Path) -> set[str]:
    """Headings as GitHub makes links of them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_of(page: str, title: str) -> list[str]:
    """The lines of the first table below a title."""
    below = (ROOT / page).read_text(encoding="utf-8").split(f"## {title}\n")[1]
    lines = below.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("|"))
    last = next(n for n, line in enumerate(lines[first:], first) if not line.startswith("|"))
    return lines[first:last]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
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


def test_readme_and_docs_name_the_same_numbers_that_move():
    title = "What another number or answer comes from"
    rows = table_of("README.md", "Differences from EasyEdit2")
    assert rows == table_of("docs/differences.md", title)
    assert len(rows) > 20


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name_of)
def test_every_page_is_in_the_sites_navigation(page: Path):
    assert re.search(rf"[: -] {page.relative_to(ROOT / 'docs').as_posix()}$", SITE, re.MULTILINE)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_asks_for_nothing_from_elsewhere(tmp_path: Path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        asked = ASKED_FOR.findall(page.read_text(encoding="utf-8"))
        assert asked, page
        assert [address for address in asked if "://" in address] == [], page
