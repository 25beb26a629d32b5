"""EasyEdit2's import path; see `steer.methods` and `steer.models`."""

from steer.methods import METHODS_CLASS_DICT
from steer.models import build_model_input
from steer.models.load import DTYPES as DTYPES_DICT

__all__ = ["DTYPES_DICT", "METHODS_CLASS_DICT", "build_model_input"]
