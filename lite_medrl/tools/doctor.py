"""Will a run work on this machine? Versions against tested ranges, device and dtype, memory and disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

OPTIONAL = ("gradio", "torchvision", "triton", "unsloth", "vllm")
MIN_FREE_GIB = 2.0


def examine(folder: Path = Path()) -> dict[str, Any]:
    """What is there and what is wrong; "ok" is False when "problems" has an entry. Sizes are in GiB."""
    versions = [compare(requirement) for requirement in requirements()]
    free_gib = shutil.disk_usage(folder).free / 2**30
    problems = [f"{row['name']} {row['installed'] or 'is missing'}: tested with {row['range']}"
                for row in versions if not row["ok"]]  # fmt: skip
    if not versions:
        problems.append("lite-medrl is not installed, so its ranges are unknown: run `make install`")
    if free_gib < MIN_FREE_GIB:
        problems.append(f"{free_gib:.1f} GiB free in {folder.resolve()}; a run wants {MIN_FREE_GIB:g}")
    return {
        "ok": not problems,
        "problems": problems,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "optional": {name: installed(name) for name in OPTIONAL},
        "device": device() if installed("torch") else None,
        "cores": os.cpu_count(),
        "memory_gib": memory_gib(),
        "disk_free_gib": round(free_gib, 1),
    }


def requirements() -> list[Requirement]:
    """The package's own ranges, without those of its extras; none where it was not installed."""
    if not installed("lite-medrl"):
        return []
    parsed = [Requirement(line) for line in importlib.metadata.requires("lite-medrl") or []]
    return [wanted for wanted in parsed if "extra" not in str(wanted.marker or "")]


def compare(wanted: Requirement) -> dict[str, Any]:
    """One row: what is installed, what range is tested, whether they agree."""
    have = installed(wanted.name)
    ok = have is not None and wanted.specifier.contains(have, prereleases=True)
    return {"name": wanted.name, "installed": have, "range": str(wanted.specifier), "ok": ok}


def installed(name: str) -> str | None:
    """Version of an installed distribution, None without it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> dict[str, Any]:
    """The card or CPU that a run would use, and the dtype policy that the loader would follow."""
    import torch

    from lite_medrl.model.load import policy_for_machine

    policy = policy_for_machine()
    card = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "name": card.name if card else platform.processor() or platform.machine(),
        "kind": policy.device,
        "memory_gib": round(card.total_memory / 2**30, 1) if card else None,
        "dtype": str(policy.dtype).removeprefix("torch."),
        "why": policy.why,
    }


def memory_gib() -> float | None:
    """Main memory; None where the system does not say."""
    if sys.platform == "win32":
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def describe(report: dict[str, Any]) -> str:
    """The report for a person."""
    lines = [f"python {report['python']} on {report['platform']}"]
    for row in report["versions"]:
        lines.append(
            f"{'ok' if row['ok'] else 'NO'}  {row['name']} {row['installed']}  (tested {row['range']})"
        )
    for name, version in report["optional"].items():
        lines.append(f"{'ok' if version else '--'}  {name} {version or 'not installed (optional)'}")
    if report["device"]:
        lines.append("runs on {name} ({kind}) in {dtype}: {why}".format(**report["device"]))
    lines.append(
        f"{report['cores']} cores, {report['memory_gib']} GiB memory, {report['disk_free_gib']} GiB disk free"
    )
    return "\n".join([*lines, *report["problems"]] if report["problems"] else [*lines, "all good"])
