"""Vectors of the library on disk, with their cards, and the page on what it has and has not."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steer.files import read_json, write_json, writing
from steer.library.judging import digests, held_out
from steer.library.recipes import Recipe, Recipes
from steer.method_files import write_method_file
from steer.vectors import Entry, Vectors, list_library, save_vectors
from steer.vectors.cards import card, interval, table

LEFT_OUT, PAGE = "left_out.json", "README.md"
TEXT = """# The vector library

Ready vectors, made by `python -m steer.vectors build` from `library.yaml`. Every folder has the
vector, its `metadata.json`, the method file that applies it, and a card. How they are used, and how
they were chosen and judged, stands in [docs/vectors.md](../../docs/vectors.md).

{table}
## Tried and left out

{left_out}"""


@dataclass
class Draft:
    """A vector before it is known whether it is kept.

    Attributes:
        method: Its name.
        folder: Name of its folder.
        vectors: With what is known of them.
        values: What its method file for applying says.
        verdict: As in `metadata.json`.
        examples: Answers, unsteered and steered.
    """

    method: str
    folder: str
    vectors: Vectors
    values: Mapping[str, Any]
    verdict: Mapping[str, Any] = field(default_factory=dict)
    examples: Sequence[Mapping[str, str]] = ()

    @property
    def works(self) -> bool:
        """What the verdict says."""
        return bool(self.verdict["works"])

    def __str__(self) -> str:
        outcome = "works" if self.works else f"left out: {'; '.join(self.verdict['reasons'])}"
        return f"{interval(self.verdict['effect'])} nats, {outcome}"


def said(recipes: Recipes, recipe: Recipe) -> dict[str, Any]:
    """What metadata says that the verdict does not."""
    note = {"note": recipe.note} if recipe.note else {}
    pairs = digests(held_out(recipe.data))
    return {"does": recipe.does, "held_out": pairs, **note, "licence": recipes.licence}


def keep(draft: Draft, place: Path, more: Mapping[str, Any]) -> None:
    """Put a vector into the folder `place`, alone, with metadata, method file and card."""
    about = {
        name: {
            **known,
            "recommended": draft.values,
            "verdict": draft.verdict,
            "examples": draft.examples,
            **more,
        }
        for name, known in draft.vectors.about.items()
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as scratch:
        folder = Path(scratch, place.name, draft.folder)
        save_vectors(folder, draft.vectors, about)
        write_method_file(folder, draft.method, draft.values)
        entry = replace(Entry.of(folder, place.name), folder=place / draft.folder)
        _write(folder / PAGE, card(entry))
        shutil.rmtree(place, ignore_errors=True)
        folder.parent.rename(place)


def note_left_out(library: Path, name: str, recipe: Recipe, draft: Draft) -> None:
    """Let the list of what does not work have the draft, or no longer have it."""
    path = library / LEFT_OUT
    there = read_json(path) if path.is_file() else {}
    there.pop(name, None)
    if not draft.works:
        found = {key: draft.verdict[key] for key in ("effect", "reasons")}
        there[name] = {"does": recipe.does, "dose": draft.values, **found}
    write_json(path, dict(sorted(there.items())), indent=2)


def write_page(library: Path) -> None:
    """Write the library's page: what it has, and what was left out and why."""
    left_out = read_json(library / LEFT_OUT)
    reasons = "".join(
        f"- **{name}** ({one['does']}): {'; '.join(one['reasons'])}\n"
        for name, one in left_out.items()
    )
    entries = table(list_library(library))
    _write(library / PAGE, TEXT.format(table=entries, left_out=reasons or "Nothing.\n"))


def _write(path: Path, text: str) -> None:
    with writing(path) as file:
        file.write(text)
