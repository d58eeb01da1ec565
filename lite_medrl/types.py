"""The values that flow between the stations: a Sample is asked, a Group of Completions comes back.

Frozen and plain: no torch, no disk, no random state. The errors of the front door live here too, because
every station may raise them and only the command line catches them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Split = Literal["train", "validation", "test"]
FinishReason = Literal["stop", "length"]
LETTERS = "ABCDEFGHIJ"


class RecipeError(ValueError):
    """A recipe key or value that cannot be used."""


class DataError(ValueError):
    """A file, row or image that cannot be used."""


class ModelError(ValueError):
    """A model id or folder that cannot be loaded."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image lies: a file, or a part of one.

    `member` is a name in a zip pack, COLUMN/ROW[/PLACE] of a Parquet file, ARRAY/ROW of an .npz file, or
    frame=N[&window=CENTRE,WIDTH] of a DICOM file.
    """

    path: str
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else self.path


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one or more images; `answer` is the text of the gold option.

    An open question has no options; its answer is free text.
    """

    id: str
    images: tuple[ImageRef, ...]
    question: str
    options: tuple[str, ...]
    answer: str
    kind: str
    modality: str
    source: str
    licence: str
    split: str = "train"
    reasoning: str | None = None
    subject: str | None = None
    answer_type: Literal["closed", "open"] | None = None
    """What the set itself says: "closed" may be a short answer out of a few that are not named."""
    place: tuple[str, int | None] = field(default=("", None), compare=False, repr=False)
    """The file and the row that it was read from, for messages."""

    @property
    def letter(self) -> str:
        """Letter of the gold option, "A" for the first. ValueError for an open question."""
        if not self.options:
            raise ValueError(f"sample {self.id} is an open question: it has no options, so no letter")
        return LETTERS[self.options.index(self.answer)]


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled answer; `sampling_logps` are natural logs under the distribution that was sampled.

    `logps` are those of the model itself at the sampling temperature, without bans, penalty or truncation:
    what `score` computes for the same tokens.
    """

    token_ids: tuple[int, ...]
    text: str
    sampling_logps: tuple[float, ...]
    finish_reason: FinishReason
    logps: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """One sample with the completions drawn for it."""

    sample: Sample
    completions: tuple[Completion, ...]
