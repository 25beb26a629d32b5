"""A user's own file, named in place of a data set."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steer.build import build
from steer.datasets.formats import ABSENT, Format, value_at
from steer.datasets.names import find_fields
from steer.datasets.reading import READERS, files_at, read_all
from steer.datasets.rows import Row

log = logging.getLogger(__name__)


def is_file_name(name: str) -> bool:
    """Whether a data set is named by its file."""
    return Path(name).suffix.lower() in READERS


def dataset_name(name: str) -> str:
    """What a data set is called in folders and results: of a file, its name without ending."""
    return Path(name).stem if is_file_name(name) else name


def own_rows(given: str, split: str, fields: Mapping[str, Any]) -> list[Row]:
    """The rows of a file, its fields found by their names; a row may lack some of them.

    Args:
        given: The file.
        split: What it is for.
        fields: Our name of a field -> the file's, in place of what would be found.

    Raises:
        ValueError: Fields cannot be found, or those that were told are not there.
        FileNotFoundError: No such file.
    """
    use = "generation" if split == "generation" else "train"
    told = f"{use}_fields"
    read = read_all(files_at(given, f"data ({split})"))
    raws = [row for rows in read.values() for row in rows]
    found = fields or find_fields(raws, use, given, told)
    form = build(Format, {"field_names": found}, {"field_names": told})
    names = form.field_names  # plain, also where a script hands on its config
    for ours, theirs in names.items():
        if all(value_at(row, theirs) is ABSENT for row in raws):
            there = ", ".join(map(repr, dict.fromkeys(name for row in raws for name in row)))
            raise ValueError(f"{told}: {given} has no {theirs!r} for {ours}: it has {there}")
    taken = ", ".join(f"{ours} from {theirs}" for ours, theirs in names.items())
    log.info("%s: %d rows, %s", given, len(raws), taken)
    return form.rows(raws, given)
