"""The library of ready vectors, and what is known of each; nothing here needs torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steer.build import unknown
from steer.files import find
from steer.vectors.metadata import METADATA, read_metadata

if TYPE_CHECKING:
    from steer.vectors.store import Vectors

LIBRARY = "vectors/library"


@dataclass(frozen=True)
class Entry:
    """A folder of vectors with metadata.

    Attributes:
        name: Its concept (`sentiment`); outside a library the folder as it was given.
        folder: Where it is: `<model>/<name>/<method>_vector` in a library.
        about: Name of a vector -> what its metadata says, as `Vectors.about`.
    """

    name: str
    folder: Path
    about: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, folder: Path, name: str) -> "Entry":
        """That of a folder.

        Raises:
            ValueError: It has no metadata, or the metadata is broken.
        """
        metadata = read_metadata(folder)
        if metadata is None:
            raise ValueError(
                f"{folder} has no {METADATA}, so that nothing is known of its vectors: give the "
                "folder of one method, or `python -m steer.vectors import FILE.pt FOLDER --layer N`"
            )
        if not metadata["vectors"]:
            raise ValueError(f"{folder}: its {METADATA} names no vector")
        return cls(name, folder, metadata["vectors"])

    @property
    def names(self) -> tuple[str, str, str]:
        """What it goes by in a library, the shortest first; the last is no other's."""
        model = self.folder.parents[1].name
        return self.name, f"{model}/{self.name}", f"{model}/{self.name}/{self.folder.name}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """What is said of the first vector; of one layer, as in the library, of all of them."""
        return next(iter(self.about.values()))

    @property
    def layers(self) -> list[int]:
        """The decoder blocks that it steers, as far as that is known."""
        return [one["layer"] for one in self.about.values() if one.get("layer") is not None]

    @property
    def model(self) -> str:
        """The model that it was made with."""
        return str((self.facts.get("model") or {}).get("id", "unknown"))

    @property
    def verdict(self) -> Mapping[str, Any]:
        """What it does to pairs that nothing was chosen by; empty where nobody has looked."""
        return self.facts.get("verdict") or {}

    def load(self, model: Mapping[str, Any] | None = None) -> "Vectors":
        """The vectors; see `load_vectors` for `model`, and for what is refused."""
        from steer.vectors.store import load_vectors  # slow to import: torch

        return load_vectors(self.folder, list(self.about), model=model)


def list_library(folder: str | Path = LIBRARY) -> list[Entry]:
    """Every entry of a library, by name.

    Args:
        folder: Of the library: `<model>/<name>/<method>_vector` below it.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Metadata of an entry is broken.
    """
    found = sorted(find(folder, "vector library").glob(f"*/*/*_vector*/{METADATA}"))
    return [Entry.of(path.parent, path.parent.parent.name) for path in found]


def own_names(entries: Sequence[Entry]) -> list[str]:
    """Of each entry of a library, the shortest of its names that no other of them has."""
    counts = Counter(name for entry in entries for name in entry.names)
    return [next(name for name in entry.names if counts[name] == 1) for entry in entries]


def library_entry(name: str, folder: str | Path = LIBRARY) -> Entry:
    """One entry, by a name that it has in the library or the path of its folder.

    In the library that is its concept; where several have it, with the model, or the model and
    the method's folder: `<model>/<name>/<method>_vector`.

    Raises:
        ValueError: Neither is there, or metadata is broken; the message lists the nearest names.
    """
    place = Path(name).expanduser()
    if place.is_dir():
        return Entry.of(place, name)
    entries = list_library(folder)
    fitting = [entry for entry in entries if name in entry.names]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"{name!r} may be any of {', '.join(own_names(fitting))}: name one of them"
        )
    raise ValueError(unknown("vector", name, [entry.name for entry in entries]))
