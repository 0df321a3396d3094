"""Sums among processes of one host, through memory that they share: `rooms.py` is how they come to it, `rounds.cpp` what happens in it."""
