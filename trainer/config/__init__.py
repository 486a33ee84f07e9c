"""Configuration of training runs: schema, recipes, presets, checks."""
