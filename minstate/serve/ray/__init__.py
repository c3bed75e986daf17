"""The server on many machines, by Ray Serve: a door that routes, and replicas with an engine each."""
