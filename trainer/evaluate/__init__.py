"""Metrics of a model on a click log, MIND's prediction file, and reports over evaluations."""
