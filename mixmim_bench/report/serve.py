"""Serve the report page of a results folder on 127.0.0.1, read-only, as it is now."""

from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

from mixmim_bench.report.contents import read_contents
from mixmim_bench.report.marks import Pairs
from mixmim_bench.report.page import to_html
from mixmim_bench.specs import digest
from mixmim_bench.suite.records import RunStore

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Server(ThreadingHTTPServer):
    """Serves `/`, the page, and `/version`, which changes when the records do.

    Requests must name this server in their Host header, so that no other site can reach it through a
    browser (DNS rebinding). Nothing is written, and no file is served.
    """

    daemon_threads = True

    def __init__(self, store: RunStore, port: int = 0, published: bool = False) -> None:
        super().__init__((HOST, port), Handler)
        self.store = store
        self.published = published
        self._pairs = Pairs(store)  # kept, so that each pair is tested once
        self._lock = Lock()
        self._page = ("", b"")  # version, page

    @property
    def address(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, ...]:
        """The values of the Host header that are accepted."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def version(self) -> str:
        """Hash the names, sizes and times of all records and costs."""
        folders = self.store.runs, self.store.folder / "costs"
        files = [path for folder in folders if folder.is_dir() for path in folder.glob("*.*")]
        stats = [(path.name, path.stat()) for path in sorted(files) if path.exists()]
        return digest([[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats])

    def page(self) -> bytes:
        """Return the page, made again if the records have changed."""
        with self._lock:
            version = self.version()
            if version != self._page[0]:
                self._page = version, self._made().encode()
            return self._page[1]

    def _made(self) -> str:
        return to_html(read_contents(self.store, self._pairs, save=False), self.published)


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD requests."""

    server: Server
    server_version, sys_version = "mixmim-bench", ""

    def do_GET(self) -> None:
        """Answer with the page, its version, or an error."""
        if self.headers.get("Host") not in self.server.hosts:
            self._answer(HTTPStatus.FORBIDDEN, b"This server answers only to its own address.", "text/plain")
        elif self.path == "/":
            self._answer(HTTPStatus.OK, self.server.page(), "text/html")
        elif self.path == "/version":
            self._answer(HTTPStatus.OK, self.server.version().encode(), "text/plain")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"There is nothing here but the report at /.", "text/plain")

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
