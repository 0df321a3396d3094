"""The client for plain programs: all but `blocking.py` is generated from service/client/asynchronous, and a test holds it to that."""
