"""The kernels in C++, and what compiles and calls them."""
