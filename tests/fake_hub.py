"""A hub on this machine, as much of one as loading and pushing a model needs; and a program that does both with it.

``owner/gated`` asks for an agreement, ``owner/model`` is what was pushed, all other names are unknown.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0" * 40


class Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    asked: list[str]

    def answer(self, code: int, body: bytes = b"{}", **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.split("?")[0].strip("/")
        if "gated" in path:
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted.")
        if path.startswith("api/models/owner/model/tree/") and self.files:
            tree = [{"type": "file", "path": n, "size": len(d), "oid": SHA} for n, d in self.files.items()]
            return self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
        if path.startswith("api/models/owner/model") and self.files:
            siblings = [{"rfilename": name} for name in self.files]
            about = {"id": "owner/model", "modelId": "owner/model", "sha": SHA, "siblings": siblings, "tags": []}
            return self.answer(200, json.dumps(about).encode(), Content_Type="application/json")
        if path.startswith("owner/model/resolve/"):
            name = path.split("/", 4)[4]
            if name not in self.files:
                return self.answer(404, X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha256(self.files[name]).hexdigest()}"'
            return self.answer(200, self.files[name], ETag=tag, X_Repo_Commit=SHA)
        return self.answer(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self.asked.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/repos/create"):
            return self.answer(200, b'{"url": "http://127.0.0.1/owner/model", "id": "owner/model"}')
        if "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(body)["files"]]
            regular = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self.answer(200, json.dumps({"files": regular}).encode())
        if "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = "http://127.0.0.1/owner/model/commit/" + SHA
            return self.answer(200, json.dumps({"commitUrl": url, "commitOid": SHA, "success": True}).encode())
        return self.answer(200, b'{"errors": [], "warnings": []}')

    def log_message(self, *_: Any) -> None:
        pass


def talk(model: Path, home: Path) -> dict[str, Any]:
    """What a process says that pushes a model, loads it again and asks for others; and what the hub holds then."""
    Hub.files, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_address[1]}"
    more = {
        "HF_ENDPOINT": here,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_x",
        "HF_HUB_DISABLE_XET": "1",
    }
    try:
        command = [sys.executable, "-m", "tests.fake_hub", str(model)]
        done = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"files": dict(Hub.files)}


def main(model: str) -> None:
    """The program."""
    from omfa.pipeline import OMFAPipeline

    pipe = OMFAPipeline.from_pretrained(model)
    pipe.push_to_hub("owner/model", token="hf_x")
    again = OMFAPipeline.from_pretrained("owner/model")
    pairs = zip(pipe.unet.parameters(), again.unet.parameters(), strict=True)
    said: dict[str, Any] = {"alike": all(bool((a == b).all()) for a, b in pairs)}
    for name in ("owner/gated", "owner/none"):
        try:
            OMFAPipeline.from_pretrained(name)
        except ValueError as e:
            said[name] = str(e)
    import huggingface_hub.constants as constants

    constants.HF_HUB_OFFLINE = True
    try:
        OMFAPipeline.from_pretrained("owner/elsewhere")
    except ValueError as e:
        said["offline"] = str(e)
    print(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1])
