"""Commands of mixmim-bench in processes of their own, two at once or stopped at points that have names.

`forked` starts at once, from a server that has imported torch and computed nothing; `computed` returns what
a function gives there. `commanded` imports all again, as what a user types does. `start` and `launch` start
the processes of a job, as torchrun does, from that server too unless they are to be `real`.
"""

import fnmatch
import importlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SERVED = multiprocessing.get_context("forkserver")
_SERVED.set_forkserver_preload(
    [
        *(
            "mixmim_bench.suite.runner",
            "mixmim_bench.training.loop",
            "mixmim_bench.report.write",
            "sklearn.datasets",
        ),
        *("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg"),
    ]
)
Event = _SERVED.Event

PATIENCE_S = 300


def kill() -> None:
    """Die at once, as by the kernel's hand."""
    signal.raise_signal(signal.SIGKILL)


def interrupt() -> None:
    """Be told what Ctrl-C tells."""
    signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True)
class Stop:
    """A point in a process: `before` or `after` the call of a function whose last argument matches a glob.

    By default: where a file that is written whole takes its name, and the process is killed there.
    """

    when: str
    matches: str = "*"
    function: str = "pathlib:Path.replace"
    count: int = 1  # of matching calls
    do: Callable[[], object] = kill

    def arm(self) -> None:
        """Let the function stop this process."""
        module, _, path = self.function.partition(":")
        *parents, name = path.split(".")
        owner: Any = importlib.import_module(module)
        for parent in parents:
            owner = getattr(owner, parent)
        real, calls = getattr(owner, name), 0

        def stopping(*args, **kwargs):
            nonlocal calls
            matching = fnmatch.fnmatch(str(args[-1]), self.matches)
            calls += matching
            here = matching and calls == self.count
            if here and self.when == "before":
                self.do()
            result = real(*args, **kwargs)
            if here and self.when == "after":
                self.do()
            return result

        setattr(owner, name, stopping)


def meet(arrived: Any, go_on: Any) -> None:
    """Say that a process has come here, and wait until it may go on."""
    arrived.set()
    assert go_on.wait(PATIENCE_S)


class Forked:
    """A function in a forked process, with the environment of this one; what it prints goes to a file."""

    def __init__(self, function: Callable[..., object], *args: object, log: Path, stop: Stop | None = None):
        told = (function, args, dict(os.environ), log, stop)
        self._process = _SERVED.Process(target=_work, args=told, daemon=True)
        self._process.start()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL, and wait for its end."""
        self._process.kill()
        self.wait()

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end; return the exit code, negative after a signal."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, "it does not end"
        return self._process.exitcode


def _work(function, args, environment, log, stop):
    os.environ.clear()
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where pytest runs in the background
    if stop is not None:
        stop.arm()
    function(*args)


def computed(function: Callable[..., Any], *args: object) -> Any:
    """Return what a function returns in a forked process; raises EOFError if it does not end well."""
    receiver, sender = _SERVED.Pipe(duplex=False)
    process = _SERVED.Process(target=_compute, args=(function, args, dict(os.environ), sender), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _compute(function, args, environment, sender):
    os.environ.clear()
    os.environ.update(environment)
    sender.send(function(*args))


def forked(*args: object, log: Path, stop: Stop | None = None) -> Forked:
    """Run a command in a forked process."""
    return Forked(_command, *args, log=log, stop=stop)


def _command(*args):
    from mixmim_bench.cli import main

    main([str(arg) for arg in args])


def commanded(*args: object, log: Path) -> subprocess.Popen:
    """Run a command as a user does."""
    with log.open("ab") as file:
        command = [sys.executable, "-m", "mixmim_bench.cli", *map(str, args)]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


class Scripted(Forked):
    """A script in a forked process, as `subprocess.Popen` starts it."""

    def __init__(self, command: list[str], environment: dict[str, str]):
        self._log = Path(tempfile.mkstemp(suffix=".log")[1])
        super().__init__(_script, command, environment, log=self._log)
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = PATIENCE_S) -> int:
        """Wait for its end; raises TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("script", timeout)
        return self._process.exitcode

    def communicate(self, timeout: float = PATIENCE_S) -> tuple[str, None]:
        """Wait for its end; return what it has printed."""
        self.wait(timeout)
        output = self._log.read_text() if self._log.exists() else ""
        self._log.unlink(missing_ok=True)
        return output, None


def _script(command, environment):
    multiprocessing.current_process()._config["daemon"] = False  # it may start processes that decode
    os.environ.update(environment)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    warnings.simplefilter("ignore")
    runpy.run_path(command[0], run_name="__main__")


def start(count, *command, real=False, **environment):
    """Start processes as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    words = list(map(str, command))
    started = []
    for rank in range(count):
        own = {**shared, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {})}
        if not real:
            started.append(Scripted(words, own))
            continue
        started.append(
            subprocess.Popen(
                [sys.executable, "-W", "ignore", *words],
                env=own,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def launch(count, *command, **options):
    """Start processes and return each one's exit status and output; options: those of `start`."""
    started = start(count, *command, **options)
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]
