"""A server on 127.0.0.1 like the Hugging Face Hub, with one dataset, and one of plain files."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, code=200, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cut.pop(self.path.partition("?")[0], None)
            self.wfile.write(body[:cut])
            self.close_connection |= cut is not None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        files, path = self.server.files, self.path.partition("?")[0]
        if path in files:  # plain files
            self.part_of(files[path])
            return
        api = f"/api/datasets/{self.server.repository}"
        if path.startswith(f"{api}/tree/"):
            self.list_folder(re.sub(rf"^{api}/tree/[^/]+/?", "", path).rstrip("/"))
        elif path.startswith(api):
            siblings = [{"rfilename": name} for name in files]
            self.answer({"id": self.server.repository, "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            found = re.fullmatch(rf"/datasets/{self.server.repository}/resolve/[^/]+/(.*)", path)
            if found and found[1] in files:
                self.part_of(files[found[1]])
            else:
                self.answer({}, 404, X_Error_Code="EntryNotFound" if found else "RepoNotFound")

    def list_folder(self, folder):
        start = f"{folder}/" if folder else ""
        entries = {}
        for name in self.server.files:
            if name.startswith(start):
                head, slash, _ = name[len(start) :].partition("/")
                entries[start + head] = {
                    "type": "directory" if slash else "file",
                    "path": start + head,
                    "size": 0 if slash else len(self.server.files[name]),
                    "oid": hashlib.sha1(name.encode()).hexdigest(),
                }
        if folder and not entries:
            self.answer({}, 404, X_Error_Code="EntryNotFound")
        else:
            self.answer(list(entries.values()))

    def part_of(self, content):
        headers = {
            "X_Repo_Commit": COMMIT,
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "Accept_Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(content, **headers)
            return
        first, last = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        self.answer(content[first : last + 1], 206, **headers)


@contextmanager
def serving(files, repository="me/digits"):
    """Serve files by name: those that begin with / as they are, others in a dataset of the Hub.

    `cut` of the server holds after how many bytes the next answer for a path ends.
    """
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.files, server.repository, server.requests, server.cut = files, repository, [], {}
        server.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
