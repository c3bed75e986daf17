"""[Triton](https://triton-lang.org) kernels for an NVIDIA GPU, each with its derivation. Importing one needs triton."""
