"""Exported models: their folder, and the formats that they are written in."""
