"""Arithmetic before anything starts: batches, steps, tokens, FLOPs, memory and disk of a run.

``batches``, ``sizes``, ``memory``, ``activations``, ``compute`` and ``disk`` are formulas over
plain numbers and need no torch; ``meta`` counts any backbone on torch's meta device, ``sample``
looks at real micro-batches; ``plan`` joins them and ``show`` prints them.
"""
