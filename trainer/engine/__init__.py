"""The training engine: one loop on Accelerate, in one process, under DDP or under DeepSpeed."""
