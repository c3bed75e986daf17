"""Machines, measured and predicted: data sheets, rooflines, seconds of a turn, compiled kernels."""
