"""What a row says about where it was measured: device, versions, commit and date."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

PACKAGES = ("torch", "triton", "trl", "transformers", "liger_kernel", "cut_cross_entropy", "unsloth_zoo")


def device_name(device: torch.device) -> str:
    """The card's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}"


def processor() -> str:
    """The processor's model as its maker calls it."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def versions() -> str:
    """Python, CUDA and every package that a row could come from, as far as they are installed."""
    parts = [f"python {platform.python_version()}"]
    parts += [f"{name} {installed(name)}" for name in PACKAGES if installed(name)]
    parts += [f"cuda {torch.version.cuda}"] if torch.version.cuda else []
    return " ".join(parts)


def installed(package: str) -> str | None:
    """Version of an installed package, by its import name; None if it is not there."""
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def commit(repo: Path) -> str:
    """The commit that is checked out, with a + if kernels differ from it; "unknown" outside a checkout."""
    head = git(repo, "rev-parse", "--short=12", "HEAD")
    if head is None:
        return "unknown"
    changed = git(
        repo, "status", "--porcelain", "--", ":/kernels", ":(top,exclude)kernels/benchmarks/results"
    )
    return head + ("+" if changed else "")


def git(repo: Path, *line: str) -> str | None:
    """What a git command prints; None if it fails or there is no git."""
    try:
        done = subprocess.run(["git", *line], cwd=repo, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def today() -> str:
    """The date, UTC."""
    return datetime.now(UTC).date().isoformat()


def interpreted() -> bool:
    """Whether Triton kernels are run by its interpreter: right, but without a speed of their own."""
    return os.environ.get("TRITON_INTERPRET") == "1"
