"""Recipes (YAML), and their resolution to the configuration of a run."""
