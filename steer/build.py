"""From YAML to checked objects, and from names to rows of a table."""

import difflib
import io
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import MISSING, fields
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from steer.files import find

T = TypeVar("T")

COMMAND_LINE = "command line"  # as the place that a value came from
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    dict: "a mapping",
    list: "a list",
    Any: "a value that YAML knows",
}
# So many names are a help; more of them hide what is meant.
LISTED = 20
PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def build(
    cls: type[T],
    values: Mapping[str, Any],
    origin: Mapping[str, str] | None = None,
    source: str = "",
) -> T:
    """Make the dataclass `cls` of `values`: names and types are checked against its fields.

    Args:
        cls: A dataclass whose field types OmegaConf knows.
        values: Field name -> value; OmegaConf converts where nothing is lost (`"1e-1"` to 0.1).
        origin: Where each value was read, for messages.
        source: Where a value that is missing should have been, for messages.

    Raises:
        ValueError: An unknown key, a value of another type, a missing field, or what
            `cls.__post_init__` refuses; the message names where the value came from.
    """
    origin = origin or {}
    every: Any = fields(cls)  # type: ignore[arg-type]
    names = [f.name for f in every]
    for key in values:
        if key not in names:
            raise ValueError(f"{_prefix(origin.get(key, ''))}{unknown('key', key, names)}")
    checked = _converted(cls, values, origin)
    for name in [f.name for f in every if f.default is f.default_factory is MISSING]:
        if name not in checked:
            raise ValueError(f"{_prefix(source)}the key {name!r} is missing")
    try:
        return cls(**checked)
    except ValueError as error:
        named = [key for key in values if key in origin and re.search(rf"\b{key}\b", str(error))]
        files = ", ".join(dict.fromkeys(origin[key] for key in named)) or source
        raise ValueError(f"{_prefix(files)}{error}") from error


def _converted(cls: type, values: Mapping[str, Any], origin: Mapping[str, str]) -> dict[str, Any]:
    try:
        return _as_typed(cls, values)
    except OmegaConfBaseException as error:
        for key, value in values.items():
            _check_type(cls, key, value, origin)
        raise ValueError(_one_line(error)) from error


def _as_typed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    typed = OmegaConf.structured(cls)
    typed.merge_with(dict(values))
    container: Any = OmegaConf.to_container(typed, resolve=True)
    return {key: container[key] for key in values}


def _check_type(cls: type, key: str, value: object, origin: Mapping[str, str]) -> None:
    try:
        _as_typed(cls, {key: value})
    except OmegaConfBaseException as error:
        kind = next(_kind(f.type) for f in fields(cls) if f.name == key)
        where = _prefix(origin.get(key, ""))
        how = ""
        if kind.startswith(KINDS[list]) and not isinstance(value, list):
            how = f"; one alone is written {key}=[{value}]"
        raise ValueError(f"{where}{key} must be {kind}: got {value!r}{how}") from error


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _kind(wanted: Any) -> str:
    """A type in words: `list[int] | None` is "a list of whole numbers or null"."""
    if wanted in KINDS:
        return KINDS[wanted]
    outer, inner = get_origin(wanted), get_args(wanted)
    if outer is list:
        return f"a list of {PLURALS.get(inner[0], 'values')}"
    return KINDS[dict] if outer is dict else " or ".join(_kind(one) for one in inner)


def pick(kind: str, name: str, table: Mapping[str, T]) -> T:
    """`table[name]`, or a ValueError that says what there is and what may have been meant."""
    if name in table:
        return table[name]
    raise ValueError(unknown(kind, name, table))


def unknown(kind: str, name: str, allowed: Iterable[str], also: Iterable[str] = ()) -> str:
    """The message for a name that is not among `allowed`, with the nearest one that is.

    The nearest may be one of `also`: names that are allowed too, but too many to list. Where there
    is one, a long list would only hide it.
    """
    names = sorted(map(str, allowed))
    every = [*names, *map(str, also)]
    close = difflib.get_close_matches(str(name), every, n=1)
    close = close or [other for other in every if other.startswith(f"{name}_")][:3]
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    if close and len(names) > LISTED:
        return f"unknown {kind} {name!r}{hint}"
    return f"unknown {kind} {name!r}{hint} (allowed: {', '.join(names)})"


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file, interpolations resolved.

    Raises:
        ValueError: Broken YAML, or not a mapping.
        FileNotFoundError: No such file, here or in the project.
    """
    place = find(path, what)
    if place.is_dir():
        raise ValueError(f"{path} is a folder: give a {what}")
    try:
        text = place.read_text(encoding="utf-8")
        # What the environment decides may change while the text does not.
        read = _values.__wrapped__ if "${" in text else _values
        return deepcopy(read(text, str(path)))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {_one_line(error)}") from error


@lru_cache(maxsize=64)
def _values(text: str, where: str) -> dict[str, Any]:
    """The mapping in `text`: the format file alone takes 0.1 s, and is read again and again."""
    return plain(OmegaConf.load(io.StringIO(text)), where)


def read_config(path: str | Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The config in a YAML file under overrides `key=value`, and where each value came from.

    For commands that do without Hydra; the key `origin_of` is what `Run.of` knows.

    Raises:
        ValueError: As `read_yaml`; also an override that is none.
        FileNotFoundError: As there.
    """
    words = list(overrides)
    if wrong := [word for word in words if "=" not in word]:
        raise ValueError(f"settings are given as key=value: got {wrong[0]!r}")
    file = read_yaml(path, "config")
    given = plain(OmegaConf.from_dotlist([word.lstrip("+") for word in words]), COMMAND_LINE)
    origin = dict.fromkeys(file, str(path)) | dict.fromkeys(given, COMMAND_LINE)
    return plain(OmegaConf.merge(file, given), str(path)) | {"origin_of": origin}


def plain(config: Any, where: str) -> dict[str, Any]:
    """An OmegaConf config or a mapping as a dict, interpolations resolved.

    Raises:
        ValueError: It is no mapping, or an interpolation leads nowhere.
    """
    try:
        config = _contained(config)
        if not isinstance(config, Mapping):
            raise ValueError(f"{where} must hold a mapping of keys: got {type(config).__name__}")
        return {str(key): _contained(value) for key, value in config.items()}
    except OmegaConfBaseException as error:
        raise ValueError(f"{where}: {_one_line(error)}") from error


def _contained(value: Any) -> Any:
    if not OmegaConf.is_config(value):
        return value
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def reason_of(error: Exception) -> str:
    """What another library says went wrong, and why: the first two lines and the last."""
    lines = list(filter(None, map(str.strip, str(error).splitlines()))) or [type(error).__name__]
    return " ".join(dict.fromkeys([*lines[:2], lines[-1]]))


def check_batch_size(batch_size: str) -> None:
    """Raise a ValueError unless it is `auto` or a whole number of 1 or more."""
    if batch_size != "auto" and not (batch_size.isdecimal() and int(batch_size)):
        raise ValueError(f"batch_size must be auto, or 1 or more: got {batch_size!r}")


def check_value(name: str, value: object, wanted: str, holds: bool) -> None:
    """Raise a ValueError that says what `name` must be, unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {wanted}: got {value}")


def check_above_zero(values: object, names: Iterable[str]) -> None:
    """Raise a ValueError unless each of these attributes of `values` is above 0."""
    for name in names:
        value = getattr(values, name)
        check_value(name, value, "above 0", value > 0)
