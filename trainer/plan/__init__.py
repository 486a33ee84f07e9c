"""Plan of a run before anything starts: batches, steps, tokens, FLOPs, memory and disk.

``batches``, ``sizes``, ``memory``, ``activations``, ``compute`` and ``disk`` are formulas over
plain numbers and need no torch; ``meta`` measures any backbone on torch's meta device, ``sample``
lays out real micro-batches; ``plan`` combines them and ``show`` prints them.
"""
