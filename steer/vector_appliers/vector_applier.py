"""EasyEdit2's import path; see `steer.applier`."""

from steer.applier import BaseVectorApplier

__all__ = ["BaseVectorApplier"]
