"""Files: where a relative path is looked for, and writes that never leave half a file."""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import BaseFileLock, FileLock, Timeout

# What may be missing because nothing has made it yet.
MADE_BY = {"vector folder": "; python vectors_generate.py makes the vectors of a config"}


def project_root() -> Path:
    """The folder that holds `hparams`, `data` and `vectors`: the checkout, or the wheel's copy."""
    package = Path(__file__).resolve().parent
    installed = package / "project"
    return installed if installed.is_dir() else package.parent


def find(path: str | Path, what: str = "file") -> Path:
    """An existing `path`, tried from the working directory, then from the project.

    Raises:
        FileNotFoundError: Neither is there; the message names both places.
    """
    given = Path(path).expanduser()
    places = [given] if given.is_absolute() else [given, project_root() / given]
    for place in places:
        if place.exists():
            return place
    tried = " and ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise FileNotFoundError(f"no {what} at {path} (looked at {tried}){MADE_BY.get(what, '')}")


@contextmanager
def writing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Yield a buffer that takes the place of the file `path` when the block ends without error.

    Raises:
        OSError: The disk is full, the folder is not writable; what stood at `path` is untouched.
    """
    path = Path(path)
    check_writable(path.parent)
    binary = io.BytesIO()
    if "b" in mode:
        yield binary
    else:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="\n")
        yield text
        text.flush()
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_together({path: binary.getvalue()})


@contextmanager
def naming(path: Path, left: str = "nothing was changed there") -> Iterator[None]:
    """Say of an OSError inside which file could not be written, why, and what is `left`."""
    try:
        yield
    except OSError as error:
        said = f"cannot write {path}: {error.strerror or error}; {left}"
        raise (OSError(error.errno, said) if error.errno else OSError(said)) from error


def check_writable(folder: str | Path) -> None:
    """Raise an OSError where files could not be put into `folder`; nothing is made.

    For work that takes long before it writes.
    """
    folder = Path(folder)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(
            f"cannot write to {folder}: {there} is a file; give another folder, or move the file"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to {folder}: no permission in {there.absolute()}")


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files of existing folders; the old ones stay until all new ones are on disk.

    Raises:
        OSError: As `writing`.
    """
    parts: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            with naming(path):
                parts[path] = _part(path, data)
        for path, part in parts.items():
            with naming(path):
                part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _part(path: Path, data: bytes) -> Path:
    """A file beside `path`, with `data` in it and on disk; none where that fails."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """While open, nobody else who asks for the lock of `path` gets it; its folder is made.

    The lock is a hidden file beside `path`, and stays: removing it would let two in.
    """
    path = Path(path)
    with naming(path):
        lock = _lock_of(path).acquire()
    with lock:
        yield


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """While open, `path` is this run's own; its folder is made, and nothing of a lock is left.

    Raises:
        BlockingIOError: It is another run's.
    """
    with naming(path):
        lock = _lock_of(path)
        free = _acquired(lock)
    if not free:
        raise BlockingIOError(
            f"another run is at work in {path.parent} (on {path.name}), and results would mix: "
            "wait until it has ended, or give another folder (generation_output_dir; output_dir "
            "of a search)"
        )
    try:
        yield
    finally:
        # While it is held: whoever has opened the file then gets no lock of a file that is gone.
        # On Windows, where what is open stays, the release does it.
        if os.name != "nt":
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _lock_of(path: Path) -> BaseFileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"))


def _acquired(lock: BaseFileLock) -> bool:
    """Whether the lock was free, and is ours now."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def write_json(path: str | Path, value: object, indent: int = 4) -> None:
    """Write `value` to `path`, all or nothing; UTF-8, characters as they are."""
    with writing(path) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False, default=str)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """The value in the JSON file at `path`.

    Raises:
        ValueError: The file is not JSON; the message names the file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
