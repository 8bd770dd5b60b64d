"""What stands before the page: bounds on what is sent to it, and word to the browser to fetch nothing from outside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MOST_SENT = 64 * 2**20  # bytes of a request: several pictures at once
MOST_FILES, MOST_HELD = 4000, 2 * 2**30  # in the folder: files, bytes
_POLICY = (
    b"default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    b"style-src 'self' 'unsafe-inline'; form-action 'self'; object-src 'none'; frame-ancestors 'self'"
)


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands before.
        folder: of uploads and results.
    """

    def __init__(self, app: Any, folder: Path) -> None:
        self.app, self.folder = app, folder

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Refuse in one line, or pass on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] == "POST" and (refusal := self._refusal(scope)):
            code, words = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": code, "headers": headers})
            return await send({"type": "http.response.body", "body": words.encode()})

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(b"content-security-policy", _POLICY), (b"x-content-type-options", b"nosniff")]
                message = message | {"headers": [*message.get("headers", ()), *more]}
            await send(message)

        return await self.app(scope, receive, send_with_policy)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return 411, "Say how long it is: content-length."
        if int(length) > MOST_SENT:
            return 413, f"At most {MOST_SENT >> 20} MB at once."
        if scope["path"].rstrip("/").endswith("/upload"):
            files, held = _held(self.folder)
            if files >= MOST_FILES or held + int(length) > MOST_HELD:
                return 507, "There are too many uploads here; they are deleted after an hour. Try again later."
        return None


def _held(folder: Path) -> tuple[int, int]:
    """Files and bytes in a folder and below it."""
    files = held = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                held += os.stat(os.path.join(path, name)).st_size
                files += 1
            except OSError:  # deleted meanwhile
                continue
    return files, held
