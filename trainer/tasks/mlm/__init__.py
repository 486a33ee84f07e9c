"""Masked language modelling: a backbone is pre-trained further (DAPT, TAPT)."""
