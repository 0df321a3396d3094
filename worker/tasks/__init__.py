"""Tasks by name: what is minimized and what is counted."""
