"""What a person sees on stderr while a run goes on: bars with step, loss, reward, tokens/s and time left."""

from __future__ import annotations

import sys
from typing import Any


class Bar:
    """A progress bar on stderr: step, loss, reward, tokens/s, time left."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        from tqdm import tqdm

        self.bar, self.done = tqdm(total=total, desc=name, unit=unit, file=sys.stderr, dynamic_ncols=True), 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def advance(self, count: int, row: dict[str, Any] | None = None) -> None:
        """Moves on by `count` and shows the numbers of a metrics row."""
        self.done += count
        if row:
            shown = {k: f"{row[k]:.3g}" for k in ("loss", "reward", "tokens_per_s") if row.get(k) is not None}
            self.bar.set_postfix(shown, refresh=False)
        self.bar.update(count)


def say(text: str) -> None:
    """One line on stderr, whatever a bar is doing."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
