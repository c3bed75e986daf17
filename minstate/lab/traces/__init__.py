"""Recorded conversations of agents: the file format, writing, reading and replaying them."""
