"""Under which protocol was a figure had? The words that ask, how answers are drawn, the rule that reads them.

Figures of different protocols cannot be compared, so each carries its protocol's id; a value that was
changed stands in the id: lite-v1[max_new_tokens=24].
"""

from __future__ import annotations

import difflib
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lite_medrl.data import wordings
from lite_medrl.data.prompts import INSTRUCTION, question_text
from lite_medrl.data.wordings import Wording
from lite_medrl.sections import Prompt
from lite_medrl.types import RecipeError, Sample

CHANGEABLE = ("max_new_tokens", "num_samples", "temperature", "top_p", "top_k")


def lite(sample: Sample, instruction: str = INSTRUCTION) -> str:
    """Our own wording (data/prompts.py)."""
    return question_text(sample.question, sample.options, instruction)


@dataclass(frozen=True, slots=True)
class Protocol:
    """Besides a greedy answer, `num_samples` are drawn for mean@K, maj@K and Pass@K.

    `choose`: nothing is drawn; the letter that the model finds likeliest is its answer (needs options).
    `profile` is a reading rule of data/answers.py.
    """

    name: str
    words: Wording
    profile: str
    max_new_tokens: int
    num_samples: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    system: str | None = None
    stop: tuple[str, ...] = ()
    choose: bool = False
    source: str = "lite-medrl"
    note: str = ""
    changed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The name, with what was changed."""
        told = ",".join(f"{key}={value}" for key, value in self.changed.items())
        return f"{self.name}[{told}]" if told else self.name

    def to_json(self) -> dict[str, Any]:
        """All that it fixes, but for the words, which an example shows."""
        names = ("name", "id", "profile", *CHANGEABLE, "system", "stop", "choose", "source", "note")
        return {name: getattr(self, name) for name in names}


PROTOCOLS: dict[str, Protocol] = {
    one.name: one
    for one in (
        Protocol("lite-v1", lite, "lite-v1", 512, num_samples=8),
        Protocol(
            "letter-logprob", wordings.letter_only, "lite-v1", 1, choose=True,
            note="no text is drawn: the likeliest of the letters; needs options",
        ),
        Protocol(
            "medvlthinker", wordings.medvlthinker, "medvlthinker", 4096,
            source="UCSC-VLAA/MedVLThinker, commit a3163b1",
            note="theirs is the mean of three greedy runs in bfloat16 by vLLM",
        ),
        Protocol(
            "medbridgerl", wordings.medbridgerl, "medbridgerl", 2048, 16, 0.7, 0.9,
            source="armenjeddi/medbridgerl, commit 1d93246",
            note="Pass@16 over 16 samples is their 'any of K'; the kit has no greedy answer",
        ),
        Protocol(
            "medevalkit-nojudge", wordings.medevalkit, "medevalkit-nojudge", 1024,
            source="alibaba-damo-academy/MedEvalKit, commit 9b12e3b",
            note="without its judge model; options are put as 'A. text' in all sets",
        ),
        Protocol(
            "llava-med", wordings.bare, "llava-med", 1024,
            source="microsoft/LLaVA-Med, model_vqa_med.py and run_eval.py as released",
            note="theirs is one answer sampled at temperature 0.7, ours is greedy; wrong answers that hold "
            "yes or no are left out, as in the release",
        ),
        Protocol(
            "llava-med-repaired", wordings.bare, "llava-med-repaired", 1024,
            source="microsoft/LLaVA-Med after its repair of December 2023",
            note="theirs is one answer sampled at temperature 0.7, ours is greedy",
        ),
    )
}  # fmt: skip


def protocol(name: str, changes: Mapping[str, Any] | None = None) -> Protocol:
    """A protocol by name, with other values for some of CHANGEABLE (None leaves a value as it is).

    Raises RecipeError for a name that is none, or a value that cannot be used.
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(name, PROTOCOLS, 1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(PROTOCOLS)}"
        raise RecipeError(f"--protocol: no protocol {name!r}; {meant}")
    found = PROTOCOLS[name]
    new = {key: v for key, v in (changes or {}).items() if v is not None and v != getattr(found, key)}
    _check(new)
    if found.choose and new:
        raise RecipeError(f"--protocol {name} draws no answers, so {', '.join(new)} cannot be set")
    return replace(found, **new, changed={**found.changed, **new})


def worded(found: Protocol, prompt: Prompt, stop: Sequence[str] = ()) -> Protocol:
    """Our own protocol in the words, and ended by the texts, of a run; those of others stay as published."""
    if found.name != "lite-v1":
        return found
    changed = dict(found.changed)
    if stop:
        found, changed["stop"] = replace(found, stop=tuple(stop)), list(stop)
    if prompt.instruction is not None or prompt.system is not None:
        instruction = INSTRUCTION if prompt.instruction is None else prompt.instruction
        changed["prompt"] = f"{zlib.crc32(repr((prompt.system, instruction)).encode()):08x}"

        def words(sample: Sample) -> str:
            return lite(sample, instruction)

        found = replace(found, words=words, system=prompt.system)
    return replace(found, changed=changed)


def _check(values: Mapping[str, Any]) -> None:
    least = {"max_new_tokens": 1, "num_samples": 0, "top_k": 0}
    for key, value in values.items():
        if key in least and value < least[key]:
            raise RecipeError(f"--{key.replace('_', '-')}: must be {least[key]} or more, got {value}")
        if key == "temperature" and not 0 < value < math.inf:
            raise RecipeError(f"--temperature: must be above 0, got {value}; greedy answers come anyway")
        if key == "top_p" and not 0 < value <= 1:
            raise RecipeError(f"--top-p: must lie in (0, 1], got {value}")
