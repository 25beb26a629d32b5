"""Detectors: vectors that tell texts apart, calibrated to open gates."""

from steer.gates.calibrating import calibrate_folder, detector_of, threshold_at
from steer.gates.making import KINDS, make_detector

__all__ = ["KINDS", "calibrate_folder", "detector_of", "make_detector", "threshold_at"]
