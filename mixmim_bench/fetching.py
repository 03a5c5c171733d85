"""Download datasets by name, when a user asks for it; nothing else in this package does."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mixmim_bench.data.dataset import TaskData, find_data, layouts_at, open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.errors import BenchError, MissingData, TaskFileError
from mixmim_bench.specs import TaskSpec
from mixmim_bench.weights.download import Bar, fetch, offline


def fetch_data(task: TaskSpec, roots: DataRoots, bar: Bar, say: Callable[[str], None]) -> TaskData:
    """Download the images of a task into its folder, check them, and return them.

    They arrive in a hidden folder beside it, which is renamed when they are whole; after an interruption,
    files that have arrived there are not downloaded again.

    Args:
        task: the task.
        roots: the data roots.
        bar: creates the progress bar of a download.
        say: prints a line.

    Raises:
        BenchError: the task cannot be downloaded by name, its folder holds something else, or the download
            fails.
    """
    if not roots.knows(task):
        raise BenchError(f"{task.name}: say where datasets are kept: --data-root FOLDER")
    with contextlib.suppress(MissingData):
        find_data(task, roots)
        say(f"{task.name}: already in {roots.folder(task)}")
        return open_task(task, roots)
    if offline():
        raise BenchError(f"{task.name} was not downloaded: $MIXMIM_BENCH_OFFLINE is set")
    folder = roots.folder(task)
    arriving = folder.with_name(f".{folder.name}.fetching")
    layout = next(
        (found.layout for found, _ in layouts_at(task, roots, arriving) if _can_fetch(found.layout)), None
    )
    if layout is None:
        ways = "; ".join(task.download).replace("DATA_ROOT", str(folder.parent))
        raise BenchError(f"{task.name} cannot be downloaded by name" + (f": {ways}" if ways else ""))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BenchError(
            f"{task.name}: {folder} exists and does not hold it (see `mixmim-bench doctor`); remove it, or "
            "choose another data root"
        )
    try:
        arriving.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{arriving}.lock", timeout=0):
            if folder.is_dir() and any(folder.iterdir()):  # another process was faster
                return open_task(task, roots)
            what = _download(task, layout, arriving, bar)
            data = _checked(task, roots, arriving)
            _move(arriving, folder)
        Path(f"{arriving}.lock").unlink(missing_ok=True)
    except Timeout:
        raise BenchError(f"{task.name}: another process is downloading it") from None
    except OSError as error:
        raise BenchError(f"{task.name} cannot be written to {folder}: {error.strerror or error}") from error
    counts = ", ".join(f"{count:,} {role}" for role, count in data.counts.items())
    say(f"{task.name}: {what} in {folder} ({counts})")
    return open_task(task, roots)


def can_fetch(task: TaskSpec, roots: DataRoots) -> bool:
    """Return whether a task can be downloaded by name."""
    try:
        return any(_can_fetch(found.layout) for found, _ in layouts_at(task, roots, roots.folder(task)))
    except BenchError:
        return False


def _can_fetch(layout: Any) -> bool:
    return hasattr(layout, "fetch")


def _download(task: TaskSpec, layout: Any, folder: Path, bar: Bar) -> str:
    try:
        with _resuming(bar):
            return str(layout.fetch(folder))
    except (BenchError, KeyboardInterrupt):
        raise
    except Exception as error:  # servers and their clients fail in many ways
        reason = f"{type(error).__name__}: {error}"
        raise BenchError(
            f"{task.name} was not downloaded: {reason}. What has arrived is kept in {folder}; run the "
            "command again"
        ) from error


def _move(arriving: Path, folder: Path) -> None:
    """Rename a folder; into an empty one that cannot be replaced, such as a mount point, move its content."""
    try:
        if folder.exists():
            folder.rmdir()
        arriving.rename(folder)
    except OSError:
        folder.mkdir(exist_ok=True)
        for each in sorted(arriving.iterdir()):
            shutil.move(each, folder / each.name)
        arriving.rmdir()


def _checked(task: TaskSpec, roots: DataRoots, folder: Path) -> TaskData:
    """Open what has arrived; a download that is not what the task file describes is kept aside."""
    try:
        return open_task(task, DataRoots(of_task={task.dataset: folder}, trusted=roots.trusted))
    except (MissingData, TaskFileError) as error:
        raise BenchError(
            f"{task.name}: what was downloaded to {folder} is not what was expected: {error}"
        ) from error


@contextlib.contextmanager
def _resuming(bar: Bar) -> Iterator[None]:
    """Let torchvision download files like weights: resumed, retried, and with a progress bar."""
    from torchvision.datasets import utils

    before = getattr(utils, "_urlretrieve", None)
    if before is None:  # another version of torchvision: its own way
        yield
        return

    def retrieve(url: str, filename: str | Path, *_: Any, **__: Any) -> None:
        Path(filename).unlink(missing_ok=True)  # torchvision asks for it again since its hash is another
        fetch(url, Path(filename), "", bar)

    utils._urlretrieve = retrieve
    try:
        yield
    finally:
        utils._urlretrieve = before
