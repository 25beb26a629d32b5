"""EasyEdit2's import path; see `steer.generator`."""

from steer.generator import BaseVectorGenerator

__all__ = ["BaseVectorGenerator"]
