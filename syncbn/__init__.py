"""Synchronized BatchNorm by all-reduce, and everything about normalization statistics."""
