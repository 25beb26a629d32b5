"""What `python -m steer.search` does: each data set searched, reported on paper and on screen."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from steer.datasets import DatasetLoader, is_file_name
from steer.search.bake_off import bake_off, bake_off_parts, write_bake_off_page
from steer.search.page import write_page
from steer.search.searching import Data, search
from steer.search.settings import SearchSettings
from steer.search.terminal import parts


def run(cfg: Any) -> Iterator[RenderableType]:
    """Search as `cfg` says; yields what is to be shown.

    Args:
        cfg: From Hydra, a mapping, or what OmegaConf loads: keys of `SearchSettings`.

    Raises:
        ValueError: Settings or data that cannot be searched.
    """
    settings = SearchSettings.of(cfg)[0]
    loader = DatasetLoader(source=settings.data_source, fields=settings.train_fields)
    given = [
        (source if is_file_name(source) else name, name, rows)
        for source in settings.steer_train_dataset
        for name, rows in loader.load_groups(source, "train").items()
    ]
    for source, name, rows in given:
        folder = Path(settings.output_dir, name).expanduser()
        if settings.bake_off:
            results = bake_off(settings, source, name, folder)
            yield from bake_off_parts(results)
            paths = [write_bake_off_page(results, folder)]
        else:
            data = Data.of(settings, source, name, rows)
            finding = search(settings, data, settings.source.load())
            yield from parts(finding)
            paths = [write_page(finding, folder)]
            paths += [Path(finding["folder"])] if finding["folder"] else []
        for path in paths:
            yield f"written: {path}"
