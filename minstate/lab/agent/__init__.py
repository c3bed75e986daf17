"""A tool-calling agent at work: its workload, the script that chooses its tool calls, its code base and its tools."""
