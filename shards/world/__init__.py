"""A synthesized world to try everything on: a news corpus and a click log whose truth is known."""
