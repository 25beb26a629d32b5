"""Files: where a relative path is looked for, and writes that never leave half a file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import FileLock


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
    tried = " and ".join(str(place.absolute()) for place in places)
    raise FileNotFoundError(f"no {what} at {path} (looked at {tried})")


@contextmanager
def writing(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` only when it was written whole.

    Raises:
        OSError: The disk is full, the folder is not writable; what stood at `path` is untouched.
    """
    path = Path(path)
    encoding = None if "b" in mode else "utf-8"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise _unwritable(path, error) from error
    part = Path(name)
    try:
        with os.fdopen(
            handle, mode, encoding=encoding, newline=None if encoding is None else "\n"
        ) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write several files of existing folders; the old ones stay until all new ones are on disk.

    Raises:
        OSError: As `writing`.
    """
    parts: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in files.items():
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=f".{path.name}.", suffix=".part"
            )
            parts[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            parts[path].chmod(0o644)
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """While open, nobody else who asks for the lock of `path` gets it; its folder is made.

    The lock is a hidden file beside `path`, and stays: removing it would let two in.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield
    finally:
        lock.release()


def _unwritable(path: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    return type(error)(error.errno, f"cannot write {path}: {reason}; nothing was changed there")


def write_json(path: str | Path, value: object, indent: int = 4) -> None:
    """Write `value` to `path`, all or nothing; UTF-8, characters as they are."""
    with writing(path) as file:
        json.dump(value, file, indent=indent, ensure_ascii=False)
        file.write("\n")


def read_json(path: str | Path) -> Any:
    """The value in the JSON file at `path`.

    Raises:
        ValueError: The file is not JSON; the message names the file, line and column.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def fingerprint(value: object) -> str:
    """SHA-256 of a JSON-like value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(data: bytes) -> str:
    """SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
