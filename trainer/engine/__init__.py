"""The training engine: one loop on Accelerate, plainly, under DDP or under DeepSpeed."""
