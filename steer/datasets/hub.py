"""Rows from the Hugging Face Hub."""

import logging
from pathlib import Path

from steer.datasets.rows import Row

log = logging.getLogger(__name__)

BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Unreachable(Exception):
    """A data set of the Hub cannot be had; the message says why."""


def read_hub(
    path: str, config: str | None = None, split: str = "train", file: str | None = None
) -> list[Row]:
    """The rows of a data set, downloaded once and kept in the library's own cache.

    Args:
        path: Its id, `owner/name`.
        config: Its configuration.
        split: A name, or a slice such as `train[:1000]`.
        file: One file of its repository, whatever its configurations say.

    Raises:
        Unreachable: There is no such data set, no network, or terms are not accepted.
    """
    # Slow to import, and not always needed.
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    log.debug("%s: from the Hub, %s", path, split)
    try:
        if file is None:
            found = load_dataset(path, config, split=split)
        else:
            # Without the repository's own script, which the library no longer runs.
            builder, place = BUILDERS[Path(file).suffix], f"hf://datasets/{path}/{file}"
            found = load_dataset(builder, data_files={"train": place}, split="train")
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise Unreachable(" ".join(str(error).split()) or type(error).__name__) from error
    return [dict(row) for row in found]
