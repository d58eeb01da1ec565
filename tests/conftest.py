"""What every test gets: no network, no telemetry, few threads, repeatable hypothesis, a browser."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch, gradio or a hub client is imported.
for name, value in {
    "OMP_NUM_THREADS": "2",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TRITON_INTERPRET": "1",  # read when Triton is imported: every kernel of the tests runs on the CPU
}.items():
    os.environ.setdefault(name, value)

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def repo() -> Path:
    """Root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def browser_path() -> str:
    """A Chromium to open pages with; without one the test is skipped, or fails where CI=true."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up("no Chromium here; `make browser` installs one where it may")
    return found


@pytest.fixture(autouse=True)
def _this_machine_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuses connections and look-ups off this machine; fails the test that tried, even if it hid that."""
    tried: list[str] = []
    own = {"", "localhost", "0.0.0.0", "::", "::1", socket.gethostname()}

    def guard(function: Any, host_of: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            host = host_of(args)
            if isinstance(host, str) and host not in own and not host.startswith("127."):
                tried.append(host)
                raise OSError(f"a test wanted to reach {host}")
            return function(*args, **kwargs)

        return guarded

    def host_of_connect(args: tuple[Any, ...]) -> Any:
        return args[1][0] if args[0].family in (socket.AF_INET, socket.AF_INET6) else None

    monkeypatch.setattr(socket.socket, "connect", guard(socket.socket.connect, host_of_connect))
    monkeypatch.setattr(
        socket, "getaddrinfo", guard(socket.getaddrinfo, lambda args: args[0] if args else None)
    )
    yield
    assert not tried, f"this test wanted to reach {', '.join(tried)}"
