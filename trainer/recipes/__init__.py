"""Recipes (YAML), and how one becomes the configuration of a run."""
