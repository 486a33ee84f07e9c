"""News encoder, user encoder, and everything about their weights."""
