"""Errors, progress, whole files. `FORMAT` goes up when bytes that this package writes change."""

FORMAT = 2
