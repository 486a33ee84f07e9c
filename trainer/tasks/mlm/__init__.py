"""Masked language modelling: further pre-training of a backbone (DAPT, TAPT)."""
