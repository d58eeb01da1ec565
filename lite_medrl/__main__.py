"""`python -m lite_medrl` is the command lite-medrl."""

from __future__ import annotations

import sys

from lite_medrl.cli import main

if __name__ == "__main__":
    sys.exit(main())
