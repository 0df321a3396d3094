"""The client for event loops, and the source of the other one, which `python -m tests.support.synchronous` writes from it."""
