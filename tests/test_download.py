"""Downloads against a server on 127.0.0.1 that serves well and badly."""

import contextlib
import hashlib
import socket
import time

import pytest
from children import Forked
from server import Behaviour, serving

from mixmim_bench.errors import BenchError
from mixmim_bench.weights import download
from mixmim_bench.weights.download import DownloadError, answers, fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _online_and_impatient(monkeypatch):
    monkeypatch.delenv(download.OFFLINE)
    monkeypatch.setattr(download, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(download, "PAUSE_S", 0.01)


class Seen:
    """A progress bar that remembers."""

    def __init__(self):
        self.totals, self.bytes = [], 0

    @contextlib.contextmanager
    def __call__(self, _name, total):
        self.totals.append(total)
        self.bytes = 0

        def advance(n):
            self.bytes += n

        yield advance


def test_a_file_is_fetched_checked_and_not_fetched_again(tmp_path):
    seen, behaviour = Seen(), Behaviour(CONTENT)
    with serving(behaviour) as url:
        for _ in range(2):
            fetch(url, tmp_path / "weights" / "file.pth", DIGEST[:8], seen)
    assert (tmp_path / "weights" / "file.pth").read_bytes() == CONTENT
    assert len(behaviour.requests) == 1
    assert seen.totals == [len(CONTENT)] and seen.bytes == len(CONTENT)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("mood", ["truncate", "stall"])
def test_a_broken_connection_is_taken_up_where_it_stopped(tmp_path, mood):
    behaviour = Behaviour(CONTENT, mood, mood, "serve")
    with serving(behaviour) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    half, more = len(CONTENT) // 2, len(CONTENT) // 4 * 3
    assert behaviour.requests == ["", f"bytes={half}-", f"bytes={more}-"]


def test_a_partial_file_of_an_earlier_start_is_gone_on_with(tmp_path):
    (tmp_path / "file.pth.part").write_bytes(CONTENT[:1000])
    seen, behaviour = Seen(), Behaviour(CONTENT)
    with serving(behaviour) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, seen)
    assert behaviour.requests == ["bytes=1000-"]
    assert seen.totals == [len(CONTENT)] and seen.bytes == len(CONTENT)


def test_a_server_that_cannot_resume_sends_the_whole_file(tmp_path):
    (tmp_path / "file.pth.part").write_bytes(b"something else")
    with serving(Behaviour(CONTENT, "ignore range")) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert (tmp_path / "file.pth").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"of another file", bytes(2 * len(CONTENT))])
def test_a_partial_file_of_another_file_is_fetched_anew(tmp_path, left):
    (tmp_path / "file.pth.part").write_bytes(left)
    with serving(Behaviour(CONTENT)) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert (tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_is_taken(tmp_path):
    (tmp_path / "file.pth.part").write_bytes(CONTENT)
    with serving(Behaviour(CONTENT)) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert (tmp_path / "file.pth").read_bytes() == CONTENT


def test_a_wrong_file_is_refused_and_not_kept(tmp_path):
    told = pytest.raises(BenchError, match="returned an unexpected file: its SHA-256 starts with")
    with serving(Behaviour(b"another file")) as url, told:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


def test_a_file_that_is_not_there_is_told_at_once(tmp_path):
    behaviour = Behaviour(CONTENT, 404)
    with serving(behaviour) as url, pytest.raises(DownloadError, match="the server returned 404"):
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert len(behaviour.requests) == 1


def test_a_busy_server_is_asked_again(tmp_path):
    behaviour = Behaviour(CONTENT, 503, 429, "serve")
    with serving(behaviour) as url:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert len(behaviour.requests) == 3


def test_a_server_that_stays_busy_is_given_up(tmp_path):
    told = pytest.raises(DownloadError, match=r"503 .*4 times in a row; rerun to resume")
    with serving(Behaviour(CONTENT, 503)) as url, told:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())


def _closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_offline_is_told_within_seconds(tmp_path, host):
    url = f"http://{host}:{_closed_port()}/file.pth"
    clock = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached") as told:
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert told.value.offline
    assert not answers(url)
    assert time.monotonic() - clock < 10


def test_nothing_is_fetched_where_the_user_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv(download.OFFLINE, "1")
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as url:
        assert not answers(url)
        with pytest.raises(DownloadError, match="MIXMIM_BENCH_OFFLINE is set"):
            fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert behaviour.requests == []


def fetch_alone(url, path, digest):
    fetch(url, path, digest, Seen())


def test_two_processes_that_ask_at_once_fetch_once(tmp_path):
    behaviour = Behaviour(CONTENT * 20)
    digest = hashlib.sha256(behaviour.content).hexdigest()
    with serving(behaviour) as url:
        file, log = tmp_path / "file.pth", tmp_path / "log"
        children = [Forked(fetch_alone, url, file, digest, log=log) for _ in range(2)]
        assert [child.wait() for child in children] == [0, 0], log.read_text()
    assert (tmp_path / "file.pth").read_bytes() == behaviour.content
    assert behaviour.requests == [""]


def test_a_killed_download_is_gone_on_with(tmp_path):
    behaviour = Behaviour(CONTENT, "stall", "serve")
    with serving(behaviour) as url:
        child = Forked(fetch_alone, url, tmp_path / "file.pth", DIGEST, log=tmp_path / "log")
        part = tmp_path / "file.pth.part"
        while not (part.exists() and part.stat().st_size):
            time.sleep(0.02)
            assert child.is_running()
        child.kill()
        assert not (tmp_path / "file.pth").exists()
        fetch(url, tmp_path / "file.pth", DIGEST, Seen())
    assert (tmp_path / "file.pth").read_bytes() == CONTENT
    assert behaviour.requests[1].startswith("bytes=")
