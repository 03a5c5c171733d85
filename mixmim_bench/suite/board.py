"""Messages from the nodes of a Ray cluster to a driver.

Nothing here imports torch, so that the actor beside the driver starts at once and takes little memory.
"""

from dataclasses import dataclass
from typing import Any

import ray

from mixmim_bench.suite.channel import Message


class Board:
    """A Ray actor that holds messages of nodes until the driver takes them."""

    def __init__(self) -> None:
        self._messages: list[tuple[str, Message]] = []

    def tell(self, sender: str, message: Message) -> None:
        """Append a message."""
        self._messages.append((sender, message))

    def take(self) -> list[tuple[str, Message]]:
        """Return all messages, and forget them."""
        messages, self._messages = self._messages, []
        return messages


@dataclass
class ToBoard:
    """Sends messages of a run to the board, and does not wait."""

    board: Any
    sender: str

    def send(self, **message: Any) -> None:
        """Send a message."""
        self.board.tell.remote(self.sender, message)

    def flush(self) -> None:
        """Wait until all messages have arrived."""
        ray.get(self.board.tell.remote(self.sender, {}))
