"""Serves the page of `lite-medrl demo RUN` on this machine only, until Ctrl-C.

Nothing is fetched, shared, counted or kept: no share link, no analytics, no API, no run history; uploads lie
in a folder that goes when the demo ends. The page itself is demo_page.py.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lite_medrl.tools.compare import Comparison
from lite_medrl.tools.progress import say
from lite_medrl.types import RecipeError

HOST, MAX_FILE, QUEUE_SIZE = "127.0.0.1", "20mb", 16
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def launch(run_dir: Path | str, port: int | None = None) -> None:
    """Serves the page until Ctrl-C, on the given port or the first free one from 7860; prints the address.

    Raises:
        RecipeError: no run in the folder or no finished stage of it, no gradio, or the port is taken.
        ModelError: the run's model or an adapter cannot be loaded.
    """
    with serve(Comparison.open(run_dir), port) as url:
        try:
            say(f"demo of {run_dir}: {url} (on this machine only; Ctrl-C ends it)")
            threading.Event().wait()
        except KeyboardInterrupt:
            say("demo ended")


@contextmanager
def serve(comparison: Comparison, port: int | None = None) -> Iterator[str]:
    """Yields the address of the running page; afterwards the server is closed and all uploads are gone.

    Says on stderr what is missing where the run is not finished.
    """
    os.environ.update(QUIET)
    if comparison.notice:
        say(comparison.notice)
    with tempfile.TemporaryDirectory(prefix="lite-medrl-demo-", ignore_cleanup_errors=True) as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        blocks, look = page_of(comparison)
        try:
            yield start(blocks, port, look)
        finally:
            blocks.close(verbose=False)
            del os.environ["GRADIO_TEMP_DIR"]


def page_of(comparison: Comparison) -> tuple[Any, dict[str, Any]]:
    """The page and its look; RecipeError with the way to get gradio where it is not installed."""
    if find_spec("gradio") is None:
        raise RecipeError("the demo needs gradio, which is not installed: pip install 'lite-medrl[demo]'")
    from lite_medrl.tools import demo_page as page

    return page.build(comparison), {"theme": page.theme(), "css": page.style()}


def start(blocks: Any, port: int | None, look: dict[str, Any]) -> str:
    """Starts the server in a thread and returns its address; RecipeError where the port is taken."""
    blocks.queue(api_open=False, max_size=QUEUE_SIZE, default_concurrency_limit=1)
    try:
        _, url, _ = blocks.launch(
            server_name=HOST, server_port=port, share=False, prevent_thread_lock=True, inbrowser=False,
            inline=False, quiet=True, show_error=False, max_file_size=MAX_FILE, allowed_paths=[],
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False,
            mcp_server=False, **look,
        )  # fmt: skip
    except OSError as error:
        wanted = f"--port {port} cannot be used" if port else "no free port from 7860 on"
        raise RecipeError(f"{wanted}: {error}; give another with --port") from error
    return url
