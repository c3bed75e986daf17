"""Machines, measured and predicted: data sheets, rooflines, seconds of a turn, K/V on links, compiled kernels."""
