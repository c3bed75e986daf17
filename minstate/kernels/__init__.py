"""Triton kernels for an NVIDIA GPU, each with its derivation. Importing one needs triton."""
