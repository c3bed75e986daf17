"""Recorded conversations of agents: their file format, and how to write, read and replay them."""
