"""Keys and tokens come from the environment only, and reach no file and no log."""

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
_VARIABLES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_KEYS = re.compile(r"(^|_)(api_?key|token|password|passwd|secret)$", re.IGNORECASE)
# Shorter values would blank out ordinary words.
_SHORTEST = 8


def redacted(value: Any) -> Any:
    """A copy of a JSON-like value in which no secret of the environment is left."""
    return _without(_secrets(), value)


def _without(secrets: Sequence[str], value: Any) -> Any:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {_without(secrets, key): _without(secrets, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without(secrets, item) for item in value]
    return value


def refuse_secrets(values: Mapping[str, Any], where: str) -> None:
    """Raise a ValueError where a key is one of a secret and has a value, at any depth."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            refuse_secrets(value, f"{where}: {key}")
        elif isinstance(value, str) and value and is_secret_key(str(key)):
            raise ValueError(
                f"{where}: {key}: keys and tokens come from the environment only; remove it"
            )


def is_secret_key(key: str) -> bool:
    """Whether what stands under this key is a secret: `api_key`, `hf_token` and the like."""
    return bool(_KEYS.search(key))


class RedactingFormatter(logging.Formatter):
    """Takes secrets out of what a logging handler writes, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """The formatted record, without secrets."""
        return redacted(super().format(record))


def _secrets() -> list[str]:
    found = [v for k, v in os.environ.items() if _VARIABLES.search(k) and len(v) >= _SHORTEST]
    return sorted(found, key=len, reverse=True)
