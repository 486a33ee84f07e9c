"""Output of a run: console lines, TensorBoard and ``metrics.jsonl``."""
