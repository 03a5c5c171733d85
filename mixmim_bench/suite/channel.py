"""Messages between a driver and its worker processes: lines of JSON, through pipes."""

import json
import os
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

Message = dict[str, Any]


class Sender:
    """Writes messages to a pipe, from any thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, **message: Any) -> None:
        """Write a message; raises OSError if nobody reads."""
        with self._lock:
            self._pipe.write(json.dumps(message).encode() + b"\n")
            self._pipe.flush()


def messages(descriptor: int) -> Iterator[Message]:
    """Read messages until the other end is closed.

    It reads the descriptor itself: a buffered file that a thread is reading when a process exits is an error.
    """
    rest = b""
    while chunk := os.read(descriptor, 1 << 16):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield json.loads(line)
