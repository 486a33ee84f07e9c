"""Synthesize a world: a news corpus and a click log with a known truth."""
