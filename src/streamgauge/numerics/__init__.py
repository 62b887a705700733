"""Arrays in, numbers out: every formula once, NumPy or torch, without files and models."""
