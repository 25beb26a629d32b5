"""EasyEdit2's import path; see `steer.models.load`."""

from steer.models.load import get_model

__all__ = ["get_model"]
