"""Finished items of a long run, one line each, so that a killed run loses none of them."""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from steer.files import alone_with, check_writable, fingerprint, naming

log = logging.getLogger(__name__)

LEFT = "what was finished before is kept; free some space, then go on with resume: true"


class Journal:
    """An append-only file beside the results; the first line says which run it belongs to.

    It is this run's alone until the end of the `with` block.

    Args:
        path: The file.
        run: All that decides the results; kept so that a changed setting can be named.
        resume: Take over the items that are there; else begin anew.

    Raises:
        ValueError: `resume`, but the items there are of another run, or the file is broken.
        OSError: The file cannot be written, or another run writes it.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.items: dict[str, Any] = {}
        header = {"fingerprint": fingerprint(run), "run": run}
        check_writable(path.parent)
        with ExitStack() as held:
            held.enter_context(alone_with(path))
            with naming(path):
                if resume and path.is_file():
                    self._take_over(header)
                else:
                    self._begin(header)
            self._held = held.pop_all()

    def _begin(self, header: Mapping[str, Any]) -> None:
        if self.path.is_file():
            log.warning("%s of a killed run is overwritten; resume: true would go on", self.path)
        self.path.write_bytes(_line(header))

    def _take_over(self, header: Mapping[str, Any]) -> None:
        # A line without an end was being written when the run was killed.
        whole = self.path.read_bytes().split(b"\n")[:-1]
        lines = [_parsed(self.path, number, line) for number, line in enumerate(whole, start=1)]
        if lines:
            refuse_other_run(self.path, lines[0], header)
        for items in lines[1:]:
            self.items.update(items)
        kept = b"".join(line + b"\n" for line in whole) or _line(header)
        with self.path.open("r+b") as file:
            file.write(kept)
            file.truncate()

    def add(self, items: Mapping[str, Any]) -> None:
        """Keep finished items; on disk when this returns.

        Raises:
            OSError: The disk is full.
        """
        # Without a buffer, which would be written again when the file is closed; and not kept open,
        # as Windows removes no open file.
        with naming(self.path, LEFT), FileIO(self.path, "a") as file:
            left = _line(items)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        self.items.update(items)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Others may write the file, which stays until `done`."""
        self._held.close()

    def done(self) -> None:
        """Remove the file: the results stand elsewhere."""
        self.path.unlink(missing_ok=True)


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8") + b"\n"


def _parsed(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        value = error
    if not isinstance(value, dict):
        raise ValueError(
            f"cannot resume: {path} line {number} is broken ({value}); remove the file, or set "
            "resume: false to begin anew"
        )
    return value


def refuse_other_run(path: Path, there: Any, wanted: Mapping[str, Any]) -> None:
    """Raise a ValueError where two runs differ.

    Args:
        path: Of what is there; said in the message.
        there: The `fingerprint` and `run` that were read from it.
        wanted: Those of the run that is to go on.
    """
    if what := difference(there, wanted):
        raise ValueError(
            f"cannot resume: {path} is of a run with other settings ({what}); "
            "set them back, or remove the file, or set resume: false to begin anew"
        )


def difference(there: Any, wanted: Mapping[str, Any]) -> str:
    """The first setting in which two runs differ, as `refuse_other_run` has them; empty if none."""
    there = there if isinstance(there, Mapping) else {}
    if there.get("fingerprint") == wanted["fingerprint"]:
        return ""
    old = _flat(there.get("run", {}))
    new = _flat(json.loads(json.dumps(wanted["run"], default=str)))
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
    name = changed[0] if changed else "of another version"
    return f"{name}: {old.get(name)!r} then, {new.get(name)!r} now" if changed else name


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found
