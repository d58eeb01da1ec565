"""What a step benchmark measures: a model, the sizes of its batch, how it is computed; one process's share.

Letters: P tokens of a prompt, R of a completion, G completions of a question, Q questions about the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lite_medrl.types import RecipeError


@dataclass(frozen=True, slots=True)
class Case:
    """One model and one batch: Q questions about one image, G completions each (SFT: the one gold answer)."""

    shape: str
    prompt: int
    """P: tokens of every prompt, nine tenths of them the image's."""
    response: int
    """R: tokens of every completion; of the longest one if `ragged`."""
    generations: int = 8
    questions_per_image: int = 1
    ragged: bool = False
    """Prompts and completions of different lengths, so that a batch of rows has padding."""
    device: str = "cpu"
    dtype: str = "float32"
    quantised: bool = False
    gradient_checkpointing: bool = False
    threads: int = 0
    """Of a CPU; 0 takes torch's own number."""
    repeats: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"prompt": 32, "response": 2, "generations": 2, "questions_per_image": 1, "repeats": 1}
        for name, low in least.items():
            if (value := getattr(self, name)) < low:
                raise RecipeError(f"--{name.replace('_', '-')}: {value} is too small; give at least {low}")

    def rows(self, phase: str) -> int:
        """Rows of the batch."""
        return self.questions_per_image * (1 if phase == "sft" else self.generations)


@dataclass(frozen=True, slots=True)
class Job:
    """What the process of one implementation is asked; `folder` is shared by all of them."""

    impl: str
    phases: tuple[str, ...]
    case: Case
    folder: str

    def tensors(self, phase: str) -> Path:
        """Where a phase's tensors go: gradients of an update, log-probs of a pass without gradient."""
        return Path(self.folder) / f"{self.impl}-{phase}.pt"
