"""Makes the library of ready vectors, and measures its verdicts anew; `steer.vectors` reads it."""

from steer.library.applying import steering_of

__all__ = ["steering_of"]
