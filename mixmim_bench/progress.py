"""Progress, speed and remaining time: a live view, or plain lines without a terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Advance = Callable[[int], None]  # counts items as done


class Stages(Protocol):
    """Where progress is shown."""

    def stage(self, name: str, total: int, work: float) -> AbstractContextManager[Advance]:
        """Show a stage over `total` items, each of which costs `work` GMACs."""

    def say(self, text: str) -> None:
        """Print a line that stays."""


class Silent:
    """Shows nothing, as processes that do not lead a job."""

    def stage(self, name: str, total: int, work: float) -> AbstractContextManager[Advance]:
        del name, total, work
        return nullcontext(lambda _: None)

    def say(self, text: str) -> None:
        del text


QUIET_S = 10.0  # between two plain lines of one stage
AT_ONCE_S = 0.5  # what is counted sooner was done before, and says nothing about the speed


class _Speed(TextColumn):
    """Images per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class View:
    """Shows the runs of a suite one after the other, and the stages of each.

    work: GMACs of the whole plan, from which the remaining time is estimated; 0 without a plan.
    """

    def __init__(self, console: Console, work: float) -> None:
        self.console = console
        self.live = console.is_terminal
        self.work = work
        self.done = 0.0  # GMACs
        self.started = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Speed(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._whole: TaskID | None = None

    def __enter__(self) -> "View":
        if self.live:
            self._bars.start()
            if self.work:
                self._whole = self._bars.add_task("all runs (GMACs)", total=round(self.work))
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line that stays."""
        line_printer(self.console)(text)

    def lane(self, name: str = "") -> "Lane":
        """Return where one of several processes shows its runs; '' for a single one."""
        return Lane(self, name)

    def count_work(self, gmacs: float) -> None:
        """Count GMACs of the whole plan as done."""
        self.done += gmacs
        self._show_whole()

    def _show_whole(self) -> None:
        if self._whole is not None:
            self._bars.update(self._whole, completed=round(self.done))

    @contextmanager
    def stage(self, name: str, total: int, work: float, prefix: str = "") -> Iterator[Advance]:
        """Show a stage over `total` items, each of which costs `work` GMACs."""
        bar = self._bars.add_task(f"{prefix}  {name}", total=total) if self.live else None
        count, before, started, said = 0, 0, time.monotonic(), time.monotonic()

        def advance(n: int) -> None:
            nonlocal count, before, said
            count += n
            if time.monotonic() - started < AT_ONCE_S:
                before += n
            self.count_work(n * work)
            if bar is not None:
                self._bars.advance(bar, n)
            elif time.monotonic() - said > QUIET_S:
                said = time.monotonic()
                speed = (count - before) / (said - started)
                left = (total - count) / speed if speed else 0.0
                self.say(f"{prefix}  {name}: {count}/{total}, {speed:.1f}/s, {left:.0f} s left")

        try:
            yield advance
        finally:
            if bar is not None:
                self._bars.remove_task(bar)


class Lane:
    """Where one process shows its runs in a view that several may share."""

    def __init__(self, view: View, name: str = "") -> None:
        self.view = view
        self.prefix = f"{name}: " if name else ""
        self._counted = 0.0  # GMACs of the current run

    def say(self, text: str) -> None:
        """Print lines that stay, each with the name of the process."""
        for line in text.splitlines():
            self.view.say(f"{self.prefix}{line}")

    @contextmanager
    def stage(self, name: str, total: int, work: float) -> Iterator[Advance]:
        """Show a stage of the current run."""
        with self.view.stage(name, total, work, self.prefix) as advance:

            def counting(n: int) -> None:
                self._counted += n * work
                advance(n)

            yield counting

    def finish_run(self, planned_work: float) -> None:
        """Count what was planned as done, also where it was not needed (features were cached)."""
        self.view.count_work(planned_work - self._counted)
        self._counted = 0.0


def line_printer(console: Console) -> Callable[[str], None]:
    """Print lines as they are, above a live view if there is one."""

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    return say


def download_bar(console: Console) -> Callable[[str, int], AbstractContextManager[Advance]]:
    """Show downloads: a live bar, or a plain line every tenth without a terminal."""

    @contextmanager
    def live(name: str, total: int) -> Iterator[Advance]:
        columns = (
            TextColumn(name),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task("", total=total or None)
            yield lambda n: bars.advance(task, n)

    @contextmanager
    def plain(name: str, total: int) -> Iterator[Advance]:
        say, done, tenth = line_printer(console), 0, 0
        say(f"fetching {name} ({total / 1e6:.0f} MB)" if total else f"fetching {name}")

        def advance(n: int) -> None:
            nonlocal done, tenth
            done += n
            if total and 10 * done // total > tenth:
                tenth = 10 * done // total
                say(f"  {done / 1e6:.0f} of {total / 1e6:.0f} MB")

        yield advance

    return live if console.is_terminal else plain
