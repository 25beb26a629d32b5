"""Keys and tokens come from the environment only, and reach no file and no log."""

import logging
import os
import re
from typing import Any

HIDDEN = "***"
_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
# Shorter values would blank out ordinary words.
_SHORTEST = 8


def redacted(value: Any) -> Any:
    """A copy of a JSON-like value in which no secret of the environment is left."""
    if isinstance(value, str):
        for secret in _secrets():
            value = value.replace(secret, HIDDEN)
        return value
    if isinstance(value, dict):
        return {redacted(key): redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


class RedactingFilter(logging.Filter):
    """Takes secrets out of what a logging handler writes."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keep every record, without secrets."""
        record.msg, record.args = redacted(record.getMessage()), None
        return True


def _secrets() -> list[str]:
    found = [v for k, v in os.environ.items() if _NAMES.search(k) and len(v) >= _SHORTEST]
    return sorted(found, key=len, reverse=True)
