"""A page in the browser: try on, take off, transfer, turn around.

    python -m omfa.app                                   # then open http://127.0.0.1:7860
    python -m omfa.app --model models/mine --port 8000 --mcp
    python -m omfa.app --host 0.0.0.0 --auth visitors.txt

The page needs nothing from outside and sends nothing there. It listens on this machine alone unless --host says
otherwise. Uploads lie in a folder of its own, deleted after an hour, at the end, and at the next start after a kill.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omfa.commands import DEVICES, Parser, count, find_device
from omfa.files import read_text, sole

KEPT = ".lock"
SHIPPED = "The model at work is a small one that learned from drawn people: photos of real ones come out rough."


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = Parser(prog="python -m omfa.app", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="compact", help="a model that ships, a folder or a hub id (default compact)")
    p.add_argument("--device", default="auto", choices=DEVICES, help="where to compute (default: the best there)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    p.add_argument("--port", type=count, default=7860)
    p.add_argument("--auth", type=Path, metavar="FILE", help="lines of name:password; nobody else is let in")
    p.add_argument("--mcp", action="store_true", help="also offer the functions as tools (Model Context Protocol)")
    return p


def visitors(path: Path) -> list[tuple[str, str]]:
    """Names and passwords of a file.

    Raises:
        ValueError: a line that is none, or none at all.
    """
    found = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name, colon, password = line.strip().partition(":")
        if line.strip() and not (name and colon and password):
            raise ValueError(f"{path}, line {number}: must be like name:password")
        found += [(name, password)] if name else []
    if not found:
        raise ValueError(f"{path} names nobody; lines are like name:password")
    return found


@contextmanager
def own_folder(port: int) -> Iterator[Path]:
    """An empty folder for the uploads of the page at a port; what killed pages have left is removed, and so is this.

    Raises:
        ValueError: another page is at work at this port.
    """
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    base = Path(tempfile.gettempdir()) / f"omfa-page-{user}"
    base.mkdir(mode=0o700, exist_ok=True)
    for other in base.iterdir():
        with suppress(ValueError, OSError), sole(other):  # nobody holds it
            _empty(other)
    folder = base / str(port)
    with sole(folder, "--port"):
        try:
            yield folder
        finally:
            _empty(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name != KEPT:
            path.unlink(missing_ok=True)


def main(args: Sequence[str] | None = None) -> int:
    """Serve the page until it is stopped; 0, or 2 where the call was wrong."""
    call = parser().parse_args(args)
    try:
        allowed = visitors(call.auth) if call.auth else None
        device = find_device(call.device)
        with own_folder(call.port) as folder:
            return serve(call, device, allowed, folder)
    except (ValueError, OSError) as e:
        print(f"omfa.app: {' '.join(str(e).split())}", file=sys.stderr)
        return 2


def serve(call: argparse.Namespace, device: str, allowed: list[tuple[str, str]] | None, folder: Path) -> int:
    """Load the model, open the page, wait.

    Raises:
        ValueError: gradio is missing, or the model can't be loaded.
        OSError: the port is taken.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}  # before gradio is imported
    try:
        import gradio  # noqa: F401

        if call.mcp:
            import mcp  # noqa: F401
    except ImportError as e:
        raise ValueError(f"the page needs {e.name}: pip install 'omfa[app]'") from None
    from diffusers.utils import logging as diffusers_logging

    from omfa.app.page import opened
    from omfa.app.studio import Studio
    from omfa.orders import lazy_estimator
    from omfa.pipeline import MODELS, OMFAPipeline

    diffusers_logging.disable_progress_bar()
    pipe = OMFAPipeline.from_pretrained(call.model).to(device)
    pipe.pose_estimator = lazy_estimator(_estimator)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    studio = Studio(pipe)
    about = SHIPPED if (MODELS / call.model).parent == MODELS else ""
    page = opened(studio, folder, call.host, call.port, allowed, call.mcp, about)
    try:
        print(f"open http://{call.host}:{call.port} (Ctrl-C stops it)", flush=True)
        if call.host not in ("127.0.0.1", "localhost", "::1") and not allowed:
            print("omfa.app: anybody who reaches this address can use it; --auth FILE asks for names", file=sys.stderr)
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        studio.close()
        page.close(verbose=False)
    return 0


def _estimator() -> Any:
    from data_prep.poses.photo import photo_estimator

    return photo_estimator()


if __name__ == "__main__":
    sys.exit(main())
