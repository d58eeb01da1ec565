"""What the benchmark scripts share: cases and their inputs, implementations and peers, timing, rows, plots,
and ahead-of-time compilation. Belongs to the repository, not to the package that users install."""
