"""Exported models: their folder, and the formats in which they are written."""
