"""Checkpoints: complete or absent, by parameter name, resumable on other ranks and ZeRO stages."""
