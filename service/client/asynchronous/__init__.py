"""The client for asyncio and trio, and the source of the other one, which `python -m tests.support.synchronous` writes from it."""
