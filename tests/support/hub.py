"""A local server that imitates the Hugging Face hub with one data set, org/name, for `huggingface_hub.HfFileSystem`."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

API, FILES = "/api/datasets/org/name", "/datasets/org/name/resolve/main/"


@contextmanager
def serve_hub(files: Mapping[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve `files` by path; yield the server's address, for HF_ENDPOINT, and the list of its answered requests."""
    answered: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def reply(self, code: int, body: bytes, **headers: str) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            answered.append(path)
            as_json = {"Content_Type": "application/json"}
            if path in (API, f"{API}/revision/main"):
                self.reply(200, json.dumps({"id": "org/name", "sha": "b" * 40}).encode(), **as_json)
            elif path.startswith(f"{API}/tree/main"):
                below = path.removeprefix(f"{API}/tree/main").strip("/")
                found = _tree(files, below, "recursive=true" in url.query.lower())
                body = json.dumps(found or {}).encode()
                self.reply(200 if found else 404, body, X_Error_Code="" if found else "EntryNotFound", **as_json)
            elif path.removeprefix(FILES) in files and path.startswith(FILES):
                self.reply_file(files[path.removeprefix(FILES)])
            else:
                self.reply(404, b"{}", X_Error_Code="RepoNotFound", **as_json)

        do_HEAD = do_GET

        def reply_file(self, data: bytes) -> None:
            headers = {"ETag": '"x"', "X_Repo_Commit": "b" * 40}
            if (wanted := self.headers.get("Range")) is None:
                self.reply(200, data, **headers)
                return
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last or len(data)), len(data) - 1)
            self.reply(206, data[begin : end + 1], Content_Range=f"bytes {begin}-{end}/{len(data)}", **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", answered
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(files: Mapping[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder as the hub does."""
    entries: dict[str, dict[str, Any]] = {}
    for path, data in files.items():
        if below and not path.startswith(f"{below}/"):
            continue
        rest = path.removeprefix(f"{below}/") if below else path
        if "/" in rest:
            folder = path[: len(path) - len(rest)] + rest.split("/")[0]
            entries[folder] = {"type": "directory", "oid": "c" * 40, "size": 0, "path": folder}
        if recursive or "/" not in rest:
            entries[path] = {"type": "file", "oid": "a" * 40, "size": len(data), "path": path}
    return list(entries.values())
