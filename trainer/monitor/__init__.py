"""What a run says about itself: console lines, TensorBoard and ``metrics.jsonl``."""
