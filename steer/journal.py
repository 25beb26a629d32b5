"""Finished items of a long run, one line each, so that a killed run loses none of them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from steer.files import fingerprint


class Journal:
    """An append-only file beside the results; the first line says which run it belongs to.

    Args:
        path: The file.
        run: All that decides the results; kept so that a changed setting can be named.
        resume: Take over the items that are there; else begin anew.

    Raises:
        ValueError: `resume`, but the items there are of another run.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.items: dict[str, Any] = {}
        self._file: IO[str] | None = None
        header = {"fingerprint": fingerprint(run), "run": run}
        if resume and path.is_file():
            self._take_over(header)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(header, default=str) + "\n", encoding="utf-8")

    def _take_over(self, header: Mapping[str, Any]) -> None:
        lines = self.path.read_bytes().split(b"\n")
        # A line without an end was being written when the run was killed.
        whole = lines[:-1]
        there = json.loads(whole[0]) if whole else header
        refuse_other_run(self.path, there, header)
        for line in whole[1:]:
            self.items.update(json.loads(line))
        kept = b"".join(line + b"\n" for line in whole)
        if not whole:
            kept = json.dumps(header, default=str).encode("utf-8") + b"\n"
        with self.path.open("r+b") as file:
            file.write(kept)
            file.truncate()

    def add(self, items: Mapping[str, Any]) -> None:
        """Keep finished items; on disk when this returns."""
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        self._file.write(json.dumps(items, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.items.update(items)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file; it stays until `done`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def done(self) -> None:
        """Remove the file: the results stand elsewhere."""
        self.path.unlink(missing_ok=True)


def refuse_other_run(path: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first setting in which two runs differ."""
    if there.get("fingerprint") == wanted["fingerprint"]:
        return
    old = _flat(there.get("run", {}))
    new = _flat(json.loads(json.dumps(wanted["run"], default=str)))
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    what = f"{changed[0]}: {old.get(changed[0])!r} then, {new.get(changed[0])!r} now" if changed else ""
    raise ValueError(
        f"cannot resume: {path} is of a run with other settings ({what}); "
        "set them back, or remove the file, or set resume: false to begin anew"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found
