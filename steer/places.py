"""Where the files of a run go: a folder's name may hold `{model}` and `{data}`."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from steer.build import unknown
from steer.datasets import dataset_name


def fill_folders(settings: Any, methods: Iterable[str]) -> dict[str, str]:
    """Fill the names into the folders of `settings`; what stands for each.

    `{model}` is the last part of the model's id, folder or file; `{data}` is what the vectors
    learn from, else where they lie, else what is answered. Several are joined by `+`. Where
    answers go there may be `{methods}` too.

    Args:
        settings: A `Settings`.
        methods: Names of methods.

    Raises:
        ValueError: A folder holds another name, or one for which there is nothing.
    """
    names = {"model": _whole(settings.model_name_or_path).name.removesuffix(".gguf")}
    if settings.steer_train_dataset:
        names["data"] = _joined(map(dataset_name, settings.steer_train_dataset))
    for key in ("steer_vector_output_dirs", "steer_vector_load_dir"):
        setattr(settings, key, [one and filled(one, names, key) for one in getattr(settings, key)])
    loaded = [_whole(folder) for folder in settings.steer_vector_load_dir if folder]
    answered = map(dataset_name, settings.generation_data)
    names.setdefault("data", _joined(f.parent.name for f in loaded) or _joined(answered) or "own")
    if settings.generation_output_dir:
        used = names | {"methods": _joined(methods) or "unsteered"}
        place = filled(settings.generation_output_dir, used, "generation_output_dir")
        settings.generation_output_dir = place
    return names


def filled(folder: str, names: Mapping[str, str], key: str) -> str:
    """`folder`, given by `key`, with `names` filled in; see `fill_folders`."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in names:
            raise ValueError(f"{key}: {folder}: {unknown('name in braces', found[1], names)}")
        return names[found[1]]

    return re.sub(r"\{(\w*)\}", value, folder)


def _whole(path: str) -> Path:
    """With the names that `.` and `..` stand for, but not those that links do."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _joined(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))
