"""What a run was made by: kept beside its results, so that it can be repeated."""

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from steer import __version__
from steer.build import plain, read_yaml
from steer.files import project_root
from steer.method_files import PATHS, paths_of, respelled

LIBRARIES = ("torch", "transformers", "tokenizers", "numpy")
# Where the vectors in force are from.
FOLDERS, THIS_RUN = "folders", "this run"
# Keys that the scripts add to a config.
ADDED = ("origin_of", "command")


def read_by(config: Any) -> dict[str, Any]:
    """The command, config and method files as they are now; the config is as `Run.of` takes it."""
    raw = read_yaml(config, "config") if isinstance(config, str | Path) else plain(config, "config")
    command = raw.get("command")
    given = {k: v for k, v in raw.items() if k not in ADDED}
    values = respelled(given, "config", raw.get("origin_of"))
    return {"command": command, "config": values, "method_files": _method_files(values)}


def origin_of(vectors: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    """Where vectors come from: FOLDERS, or THIS_RUN where they were handed over, by method key.

    Then also what they have `learnt_from`, as their metadata says.
    """
    if vectors is None:
        return {"vectors": FOLDERS}
    known = [e for own in vectors.values() for e in getattr(own, "about", {}).values()]
    # A merged vector's inputs may be of another run.
    learnt = [entry["data"] for entry in known if "data" in entry and "inputs" not in entry]
    unlike = [data for n, data in enumerate(learnt) if data not in learnt[:n]]
    return {"vectors": THIS_RUN, "learnt_from": unlike}


def made_by(
    read: Mapping[str, Any], device: torch.device, origin: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run that ends now was made by.

    Args:
        read: Of `read_by`, when it began.
        device: Where the model is.
        origin: Of its vectors, by `origin_of`.
    """
    return {
        **read,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **origin,
        "versions": versions(),
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "device": str(device),
            "threads": torch.get_num_threads(),
        },
    }


def _method_files(values: dict[str, Any]) -> dict[str, Any]:
    """What each method file of either phase says; one that is not there is needed by none."""
    found: dict[str, Any] = {}
    for path in (path for phase in PATHS for path in paths_of(values, phase)):
        try:
            found[path] = read_yaml(path, "method file")
        except FileNotFoundError:
            continue
    return found


@cache
def versions() -> dict[str, str | None]:
    """Of Python, steer and what it computes with; `git` is the project's commit, if it has any."""
    found = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "steer": __version__, **found, "git": _commit()}


def _commit() -> str | None:
    """The commit that is checked out, with `-dirty` where files differ from it."""
    root = project_root()
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
