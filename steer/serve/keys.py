"""Who may come in."""

import hmac
import os
from hashlib import sha256

from steer.files import find
from steer.serve.settings import ServeSettings

VARIABLE = "STEER_API_KEYS"
SHORTEST = 16


class Keys:
    """The keys of a server, as hashes.

    Attributes:
        anonymous: Whether everybody is let in.
    """

    def __init__(self, keys: list[str], *, anonymous: bool = False) -> None:
        self.anonymous = anonymous
        self._hashes = [sha256(key.encode()).digest() for key in keys]

    @classmethod
    def of(cls, settings: ServeSettings) -> "Keys":
        """The keys of environment and file.

        Raises:
            ValueError: None is given, or one that is too short to be safe.
            FileNotFoundError: The file is not there.
        """
        given = os.environ.get(VARIABLE, "").split(",")
        if settings.api_key_file is not None:
            given += find(settings.api_key_file, "key file").read_text("utf-8").splitlines()
        keys = [key.strip() for key in given if key.strip()]
        if any(len(key) < SHORTEST for key in keys):
            raise ValueError(f"a key of {VARIABLE} or api_key_file has under {SHORTEST} characters")
        if not keys and not settings.allow_anonymous:
            raise ValueError(
                f"no keys: put them into {VARIABLE} (with commas between) or api_key_file, or set "
                "allow_anonymous: true to serve this machine without any"
            )
        return cls(keys, anonymous=not keys)

    def fit(self, authorization: str) -> bool:
        """Whether the header `Authorization` brings a key; takes as long for any wrong one."""
        kind, _, key = authorization.partition(" ")
        given = sha256(key.strip().encode()).digest()
        found = [hmac.compare_digest(given, one) for one in self._hashes]
        return kind.lower() == "bearer" and any(found)
