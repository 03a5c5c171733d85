"""A web server on 127.0.0.1 that serves one file, well or badly."""

import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """What the server does: the file, and for each request in turn one of the moods, the last for good.

    'serve', 'ignore range', 'truncate' (half, then the connection ends), 'stall' (half, then silence),
    or a status such as 404.
    """

    def __init__(self, content, *moods):
        self.content = content
        self.moods = list(moods) or ["serve"]
        self.requests = []  # the Range header of each GET

    def next_mood(self):
        return self.moods.pop(0) if len(self.moods) > 1 else self.moods[0]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        behaviour = self.server.behaviour
        asked = self.headers.get("Range", "")
        behaviour.requests.append(asked)
        mood = behaviour.next_mood()
        if isinstance(mood, int):
            self.send_error(mood)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and mood != "ignore range" else 0
        if start and start >= len(behaviour.content):
            self.send_error(416)
            return
        body = behaviour.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(behaviour.content) - 1}/*")
        self.end_headers()
        whole = mood in ("serve", "ignore range")
        self.wfile.write(body if whole else body[: len(body) // 2])
        self.wfile.flush()
        if mood == "stall":
            time.sleep(5)
        self.close_connection = True


@contextmanager
def serving(behaviour):
    """Serve, and give the address of the file."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        server.behaviour = behaviour
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/file.pth"
        finally:
            server.shutdown()
            thread.join()
