"""A worker process of a suite: `python -m mixmim_bench.suite.worker` does the runs that its driver sends.

The driver writes the setup and then jobs to standard input, and reads progress and records from standard
output (`channel`). When the driver ends, the worker ends too: a training saves a checkpoint first.
"""

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from mixmim_bench.data.dataset import TaskData, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, show_warnings
from mixmim_bench.machine import open_machine
from mixmim_bench.progress import Advance
from mixmim_bench.specs import Run
from mixmim_bench.suite.channel import Message, Sender, messages
from mixmim_bench.suite.doing import Doer, Job
from mixmim_bench.suite.records import RunStore

GRACE_S = 30.0  # for a checkpoint, after SIGTERM
OFTEN_S = 0.2  # between two messages of a stage


class Sending(Protocol):
    """What sends messages."""

    def send(self, **message: Any) -> None:
        """Send a message."""


class Remote:
    """Sends progress to the driver."""

    def __init__(self, sender: Sending) -> None:
        self._sender = sender

    def say(self, text: str) -> None:
        """Print lines in the view of the driver."""
        self._sender.send(say=text)

    @contextmanager
    def stage(self, name: str, total: int, work: float) -> Iterator[Advance]:
        """Show a stage in the view of the driver."""
        count, sent = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal count, sent
            count += n
            if time.monotonic() - sent > OFTEN_S:
                self._sender.send(advance=count)
                count, sent = 0, time.monotonic()

        self._sender.send(stage=[name, total, work])
        try:
            yield advance
        finally:
            self._sender.send(advance=count, ended=True)


def main() -> None:
    """Do the jobs of the driver until it closes standard input."""
    sender = Sender(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever libraries print is no message
    received: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(received,), daemon=True).start()
    remote = Remote(sender)
    show_warnings(remote.say)
    try:
        doer = doer_of(received.get(), remote)
    except BenchError as error:  # of the device
        sender.send(unusable=str(error))
        return
    sender.send(ready=True)
    while True:
        message = received.get()
        try:
            done = doer.do(Job.from_json(message["job"]), message["wait"], lambda: sender.send(started=True))
        except BenchError as error:  # the result cannot be saved
            sender.send(fatal=str(error))
            return
        if done is None:
            sender.send(claimed=True)
        else:
            sender.send(done=done.record.to_json(), new=done.new)


def _receive(received: "queue.SimpleQueue[Message]") -> None:
    """Pass on messages; end this process when the driver has ended or closed the pipe."""
    for message in messages(0):
        received.put(message)
    os.kill(os.getpid(), signal.SIGTERM)  # a training saves a checkpoint
    time.sleep(GRACE_S)
    os._exit(1)


def doer_of(setup: Message, remote: Remote) -> Doer:
    """Make what does the runs of a driver; raises BenchError if the device cannot be used."""
    roots = DataRoots.from_json(setup["roots"])

    opened: dict[tuple[str, tuple[str, ...]], TaskData] = {}

    def data_of(run: Run) -> TaskData:
        if run.task.key not in opened:
            opened[run.task.key] = open_task(run.task, roots)
        return opened[run.task.key]

    machine = open_machine(setup["device"], **setup["settings"])
    store = RunStore(Path(setup["results"]))
    return Doer(store, machine, data_of, remote, setup["trackers"], setup["save_weights"])


def setup_of(doer: Doer, device: str, settings: dict[str, Any], roots: DataRoots) -> Message:
    """Return the first message to a worker, which does runs as a doer of the driver does."""
    return {
        "device": device,
        "settings": settings,
        "roots": roots.to_json(),
        "results": str(doer.store.folder),
        "trackers": list(doer.trackers),
        "save_weights": doer.save_weights,
    }


if __name__ == "__main__":
    main()
    sys.exit()
