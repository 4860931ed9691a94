"""A Hugging Face Hub on localhost: enough of it for downloads, refusals and connections that break."""

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "0123456789" * 4


class Hub(ThreadingHTTPServer):
    """Serves the folders of `root`, `owner/name` each, with one commit; `gated` names repositories that refuse."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.gated: set[str] = set()
        self.break_after: int | None = None
        """Bytes after which the connection of the next .safetensors file breaks, once."""
        self.downloads: list[tuple[str, str | None]] = []
        """Files served, each with the Range that was asked for."""
        self.listed: list[str] = []
        """Paths that every listing names too, whether they are there or not."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def hub_on_localhost(root: Path) -> Iterator[Hub]:
    server = Hub(root)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)(?:/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        match = api or file
        assert match, path
        folder = self.server.root / match[1]
        if match[1] in self.server.gated:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "ask for access"})
        elif not folder.is_dir():
            self._answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif api and api[3] not in ("main", SHA):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api and api[2] == "revision":
            self._json({"id": match[1], "sha": SHA, "siblings": [], "private": False, "tags": [], "downloads": 0})
        elif api:
            files = [entry for entry in folder.rglob("*") if entry.is_file()]
            listing = [{"type": "file", "path": entry.relative_to(folder).as_posix(), "size": entry.stat().st_size,
                        "oid": hashlib.sha1(entry.read_bytes()).hexdigest()} for entry in files]  # fmt: skip
            self._json(listing + [{"type": "file", "path": path, "size": 2, "oid": "0"} for path in self.server.listed])
        elif file:
            self._file(folder / file[2])

    def _file(self, path: Path) -> None:
        content = path.read_bytes() if path.is_file() else b"{}"
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": SHA, "Accept-Ranges": "bytes"}
        if self.command == "HEAD":
            return self._answer(200, content, etag)
        asked = self.headers.get("Range")
        self.server.downloads.append((path.name, asked))
        start = int(re.findall(r"\d+", asked)[0]) if asked else 0
        headers = {**etag, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else etag
        if self.server.break_after is not None and path.suffix == ".safetensors":
            end, self.server.break_after = self.server.break_after, None
            self._answer(206 if asked else 200, content[start:], headers, only=end)
            self.close_connection = True
            self.connection.close()
            return None
        return self._answer(206 if asked else 200, content[start:], headers)

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json", "X-Repo-Commit": SHA})

    def _answer(self, code: int, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:only])
