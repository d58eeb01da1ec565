"""Benchmarks of whole stages against the libraries that do the same; the kernels have their own."""
