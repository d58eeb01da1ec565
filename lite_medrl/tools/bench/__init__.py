"""Benchmarks of whole stages on the machine at hand; those of single kernels are in kernels/benchmarks."""
