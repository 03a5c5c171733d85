"""Messages between a driver and its worker processes: lines of JSON, through pipes."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

from mixmim_bench.progress import Advance, Lane

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


class Shown:
    """Shows what the messages of a process say of its progress."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._stages: list[tuple[ExitStack, Advance]] = []

    def show(self, message: Message) -> None:
        """Show a message; others than those of `worker.Remote` are ignored."""
        if "say" in message:
            self.lane.say(message["say"])
        elif "stage" in message:
            stack = ExitStack()
            self._stages.append((stack, stack.enter_context(self.lane.stage(*message["stage"]))))
        elif "advance" in message and self._stages:
            stack, advance = self._stages[-1]
            advance(message["advance"])
            if "ended" in message:
                self._stages.pop()
                stack.close()

    def clear(self) -> None:
        """End the stages that are shown."""
        while self._stages:
            self._stages.pop()[0].close()
