"""A worker process as its driver sees it: started, given jobs, ended with all that it has started."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress

import psutil

from mixmim_bench import processes
from mixmim_bench.progress import Lane
from mixmim_bench.suite.channel import Message, Sender, Shown, messages
from mixmim_bench.suite.queued import Queued

GRACE_S = 30.0  # between SIGTERM, after which a training saves a checkpoint, and SIGKILL
HELD_S = 3.0  # after which the pipes of a process that has ended are not waited for
SAID = 20  # lines of standard error that are remembered

Inbox = queue.SimpleQueue[tuple["Child", Message | None]]


class Child:
    """A worker process (`suite.worker`).

    Args:
        device: what it computes on.
        setup: its first message.
        threads: of the CPU for libraries other than torch; 0: their default.
        lane: shows its progress.
        inbox: receives its messages, and None when it has ended.
    """

    def __init__(self, device: str, setup: Message, threads: int, lane: Lane, inbox: Inbox) -> None:
        self.device, self.lane, self.shown = device, lane, Shown(lane)
        self.ready = False
        self.queued: Queued | None = None  # what it does
        self.network = ""  # that it holds
        self.deadline = float("inf")
        self.timed_out = False
        self._over = 0.0  # when it was found to have ended
        self._said: deque[str] = deque(maxlen=SAID)
        self._inbox = inbox
        environment = processes.environment_of_one()
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mixmim_bench.suite.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the driver alone, and all its children can be ended
        )
        assert self._process.stdin is not None
        self._sender = Sender(self._process.stdin)  # type: ignore[arg-type]
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._read, self._read_errors)
        ]
        for thread in self._threads:
            thread.start()
        self.send(**setup)

    def send(self, **message: object) -> None:
        """Send a message; one that has ended is found by its end."""
        with suppress(OSError):
            self._sender.send(**message)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError, OSError):  # a line that was cut off
            for message in messages(self._process.stdout.fileno()):
                self._inbox.put((self, message))
        self._inbox.put((self, None))

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            text = line.decode(errors="backslashreplace").rstrip()
            if text:
                self._said.append(text)
                self._inbox.put((self, {"say": text}))

    def release(self) -> Queued:
        """Return the run that it no longer does."""
        each, self.queued, self.deadline = self.queued, None, float("inf")
        assert each is not None
        self.shown.clear()
        return each

    def is_over(self) -> bool:
        """Whether it has ended, and what it has started still holds its pipes open after a while."""
        if self._process.poll() is None:
            return False
        self._over = self._over or time.monotonic()
        return time.monotonic() - self._over > HELD_S

    def reason(self) -> str:
        """Say why it has ended."""
        status = self._process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            memory = ", maybe for lack of memory" if name == "SIGKILL" else ""
            return f"it was ended by {name}{memory}"
        last = f": {self._said[-1]}" if self._said else ""
        return f"it exited with status {status}{last}"

    def terminate(self) -> None:
        """Ask it to end; a training saves a checkpoint."""
        with suppress(OSError):
            self._process.terminate()

    def end(self, grace_s: float | None = None) -> None:
        """End it with all processes that it has started, after a time to end by itself."""
        started = _descendants(self._process.pid)
        self.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S if grace_s is None else grace_s)
        self.kill(started)

    def kill(self, started: "list[psutil.Process] | None" = None) -> None:
        """Kill it and what it has started: worker processes may outlive it, and hold its pipes open."""
        for process in _descendants(self._process.pid) if started is None else started:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if hasattr(os, "killpg"):
            with suppress(OSError):  # nothing is left of its session
                os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        """Close the pipes, unless a process that escaped holds them open."""
        for thread in self._threads:
            thread.join(HELD_S)
        if any(thread.is_alive() for thread in self._threads):
            return
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):  # of what could not be sent
                if pipe is not None:
                    pipe.close()


def _descendants(pid: int) -> "list[psutil.Process]":
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []
