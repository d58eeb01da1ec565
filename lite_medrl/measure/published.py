"""What others have published on the six benchmarks, to stand beside our own figures; none was measured here.

Accuracies in percent of closed questions. A figure of another protocol, precision or answer budget is no
yardstick: the column "protocol" says under which it was had, as far as the source does.
"""

from __future__ import annotations

from dataclasses import dataclass

COLUMNS = ("pmc_vqa", "MMMU-medical", "MedXpertQA-MM", "pathvqa_closed", "slake_closed", "vqa_rad_closed")
NUMBERS = dict(zip(COLUMNS, (2000, 170, 2000, 3362, 416, 272), strict=True))  # questions, as published
TITLES = ("PMC-VQA", "MMMU-med", "MedXpertQA-MM", "PathVQA", "SLAKE", "VQA-RAD")
README = "MedVLThinker's README (UCSC-VLAA/MedVLThinker)"


@dataclass(frozen=True, slots=True)
class Published:
    """One model: percent by COLUMNS, their mean as the source gives it, protocol, source, and how sure it is.

    `certain` is False where the figures come from a third party's listing instead of the authors.
    """

    model: str
    percent: tuple[float, float, float, float, float, float]
    mean: float
    protocol: str = "medvlthinker"
    source: str = README
    certain: bool = True


PUBLISHED = (
    Published("GPT-4o", (58.55, 68.82, 35.95, 72.43, 76.44, 70.22), 63.74),
    Published("Qwen2.5-VL-3B", (44.77, 44.12, 20.69, 61.96, 61.30, 62.01), 49.14),
    Published("Qwen2.5-VL-7B", (49.30, 52.94, 18.89, 65.39, 65.71, 68.75), 53.50),
    Published("Qwen2.5-VL-32B", (53.28, 63.92, 27.68, 67.98, 73.24, 75.12), 60.20),
    Published("MedGemma-4B", (42.73, 32.55, 8.17, 59.64, 83.49, 78.55), 50.86),
    Published("HuatuoGPT-Vision-7B", (53.39, 50.59, 22.00, 63.53, 75.00, 63.60), 54.69),
    Published("MedVLThinker-7B, RL on m23k", (50.67, 56.86, 24.43, 66.83, 65.79, 64.71), 54.88),
    Published("MedVLThinker-7B, RL on PMC", (55.38, 55.29, 24.11, 57.09, 66.59, 63.48), 53.66),
    Published("MedVLThinker-7B, SFT on PMC", (54.67, 49.80, 21.39, 53.02, 67.71, 57.72), 50.72),
    Published("MedVLThinker-32B, RL on m23k", (54.37, 70.00, 34.60, 68.82, 73.96, 76.96), 63.12),
    Published(
        "MedBridgeRL: OctoMed-7B, RL on PMC-8k", (59.0, 62.94, 34.5, 65.5, 88.0, 79.0), 64.82,
        "not stated", "listed by a third party for arXiv 2603.01301", False,
    ),
)  # fmt: skip

# Which column the figures of a benchmark of ours can stand in: its name, or its name and part.
COLUMN_OF = {
    **{f"medvlthinker-6/{name}": name for name in COLUMNS},
    "pmc-vqa": "pmc_vqa",
    "mmmu-medical": "MMMU-medical",
    "medxpertqa-mm": "MedXpertQA-MM",
    "pathvqa": "pathvqa_closed",
    "slake": "slake_closed",
    "vqa-rad": "vqa_rad_closed",
}
