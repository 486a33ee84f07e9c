"""News encoder, user encoder, and all handling of their weights."""
