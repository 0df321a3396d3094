"""Kinds of normalization other than the synchronized one, and `build_norm`, which makes any of them by name."""
