"""Many agents on one engine, real or simulated: traffic, eviction, how many agents a GPU serves."""
