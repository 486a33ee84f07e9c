"""Losses as pure functions of tensors, one file each, with the paper's symbols."""
