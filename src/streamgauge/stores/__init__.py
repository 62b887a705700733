"""Stores on disk. `FORMAT` goes up whenever bytes that this package writes change."""

FORMAT = 2
