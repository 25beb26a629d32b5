"""Scoring of answers; knows result files, not what made them."""
