"""Models by name, every normalization site of them built by the norm of the spec."""
