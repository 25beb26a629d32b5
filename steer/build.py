"""From YAML values to checked objects, and from names to rows of a table."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> T:
    """Make the dataclass `cls` of `values`: names and types are checked against its fields.

    Args:
        cls: A dataclass whose field types OmegaConf knows.
        values: Field name -> value; OmegaConf converts where nothing is lost (`"1e-1"` to 0.1).
        origin: Where each value was read, for messages.

    Raises:
        ValueError: An unknown key, a value of another type, a missing field, or what
            `cls.__post_init__` refuses; the message names where the value came from.
    """
    origin = origin or {}
    checked = {key: _checked(cls, key, value, origin) for key, value in values.items()}
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    for name in required:
        if name not in checked:
            raise ValueError(f"{cls.__name__} needs the key {name!r}")
    try:
        return cls(**checked)
    except ValueError as error:
        files = sorted({origin[key] for key in values if key in origin and key in str(error)})
        raise ValueError(f"{', '.join(files)}: {error}" if files else str(error)) from error


def _checked(cls: type, key: str, value: object, origin: Mapping[str, str]) -> Any:
    where = f"{origin[key]}: " if key in origin else ""
    names = [f.name for f in fields(cls)]
    if key not in names:
        raise ValueError(f"{where}{unknown('key', key, names)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), {key: value})
        container = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        kind = next(str(f.type) for f in fields(cls) if f.name == key)
        kind = kind.removeprefix("<class '").removesuffix("'>")
        raise ValueError(f"{where}{key} must be {kind}: got {value!r}") from error
    return container[key]  # type: ignore[index,call-overload]


def pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that says what there is and what may have been meant."""
    if name in table:
        return table[name]
    raise ValueError(unknown(kind, name, table))


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """The message for a name that is not among `allowed`, with the nearest one that is."""
    names = sorted(map(str, allowed))
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} (allowed: {', '.join(names)})"
