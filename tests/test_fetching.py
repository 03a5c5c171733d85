"""`fetch-data`: datasets of torchvision and of the Hugging Face Hub, from a server on 127.0.0.1."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

import copies
import hub
import pytest
from torchvision import datasets

from mixmim_bench.data.dataset import open_task
from mixmim_bench.data.roots import DataRoots
from mixmim_bench.suite.selection import select_tasks

HEAD = 'schema = 1\nversion = 1\nkind = "classification"\ntitle = "x"\nnum_classes = {}\nmetrics = ["top1"]\n'


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    monkeypatch.delenv("MIXMIM_BENCH_OFFLINE", raising=False)  # nothing but 127.0.0.1 is asked


def md5(data):
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10 on a server, as torchvision expects it."""
    copies.cifar10(tmp_path / "made")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    packed = file.getvalue()
    lists = {
        name: [
            [batch, md5((tmp_path / "made" / "cifar-10-batches-py" / batch).read_bytes())]
            for batch, _ in value
        ]
        for name, value in (
            ("train_list", datasets.CIFAR10.train_list),
            ("test_list", datasets.CIFAR10.test_list),
        )
    }
    for name, value in {**lists, "tgz_md5": md5(packed)}.items():
        monkeypatch.setattr(datasets.CIFAR10, name, value)
    meta = (tmp_path / "made" / "cifar-10-batches-py" / "batches.meta").read_bytes()
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": md5(meta)})
    task = tmp_path / "small-cifar.toml"
    task.write_text(
        HEAD.format(10)
        + """[data]
layouts = ["vision:Torchvision"]
[data.options]
dataset = "CIFAR10"
keywords = { train = { train = true }, test = { train = false } }
needs = ["cifar-10-batches-py"]
[split]
train = "train[:90%]"
val = "train[90%:]"
test = "test"
"""
    )
    with hub.serving({"/cifar-10-python.tar.gz": packed}) as server:
        monkeypatch.setattr(datasets.CIFAR10, "url", f"{server.address}/cifar-10-python.tar.gz")
        yield server, task


def test_a_dataset_of_torchvision_is_downloaded(run, tmp_path, cifar):
    server, task = cifar
    root = tmp_path / "data"
    said = run("fetch-data", task, "--data-root", root).output
    assert f"torchvision's CIFAR10 in {root / 'small-cifar'}" in said
    (spec,) = select_tasks([str(task)], ())
    assert open_task(spec, DataRoots(base=root)).counts["test"] > 0
    assert sorted(path.name for path in root.iterdir()) == ["small-cifar"]  # nothing hidden is left
    before = len(server.requests)
    assert "already in" in run("fetch-data", task, "--data-root", root).output
    assert len(server.requests) == before


def test_an_empty_folder_that_is_a_link_is_filled(run, tmp_path, cifar):
    _, task = cifar
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "small-cifar").symlink_to(tmp_path / "disk")
    run("fetch-data", task, "--data-root", tmp_path / "data")
    assert (tmp_path / "disk" / "cifar-10-batches-py").is_dir()
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["small-cifar"]


def test_an_interrupted_download_goes_on(run, tmp_path, cifar, monkeypatch):
    from mixmim_bench.weights import download

    monkeypatch.setattr(download, "ATTEMPTS", 1)
    monkeypatch.setattr(download, "PAUSE_S", 0.01)
    server, task = cifar
    root, path = tmp_path / "data", "/cifar-10-python.tar.gz"
    content = server.files.pop(path)
    said = run("fetch-data", task, "--data-root", root, code=2).output
    assert "404" in said
    assert not (root / "small-cifar").exists()
    server.files[path], server.cut[path] = content, 1000
    run("fetch-data", task, "--data-root", root)
    gets = [each for each in server.requests if each == f"GET {path}"]
    assert len(gets) == 3  # one that failed, one that was cut, and the rest
    assert (root / "small-cifar" / "cifar-10-batches-py").is_dir()


def test_files_of_the_mnist_family_are_downloaded(run, tmp_path, monkeypatch):
    copies.idx(tmp_path / "made")
    files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "made").iterdir()}
    resources = [(name, md5(files[f"/{name}"])) for name, _ in datasets.MNIST.resources]
    monkeypatch.setattr(datasets.KMNIST, "resources", resources)
    text = HEAD.format(10) + (
        '[data]\n[[data.layouts]]\nlayout = "idx:IDX"\nname = "KMNIST"\n'
        'classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]\n'
        '[split]\ntrain = "train[:90%]"\nval = "train[90%:]"\ntest = "test"\n'
    )
    (tmp_path / "small.toml").write_text(text)
    with hub.serving(files) as server:
        monkeypatch.setattr(datasets.KMNIST, "mirrors", [f"{server.address}/"])
        run("fetch-data", tmp_path / "small.toml", "--data-root", tmp_path / "data")
    (spec,) = select_tasks([str(tmp_path / "small.toml")], ())
    data = open_task(spec, DataRoots(base=tmp_path / "data"))
    direct = open_task(spec, DataRoots(of_task={"small": tmp_path / "made"}))
    assert data.source.fingerprint == direct.source.fingerprint


def test_nothing_is_downloaded_unasked_or_over_other_files(run, tmp_path, cifar, monkeypatch):
    server, task = cifar
    root = tmp_path / "data"
    missing = run("run", "-t", task, "-m", "test_vit=random", "--data-root", root, code=2).output
    assert "`mixmim-bench fetch-data` downloads it" in missing
    run("doctor", "-t", task, "--data-root", root, code=3)
    copies.write(root / "small-cifar" / "mine.txt", "mine")
    assert "exists and does not hold it" in run("fetch-data", task, "--data-root", root, code=2).output
    assert not server.requests
    assert "say where datasets are kept" in run("fetch-data", task, code=2).output
    cannot = run("fetch-data", "imagenet1k", "--data-root", root, code=2).output
    assert "cannot be downloaded by name: ILSVRC2012_img_train.tar" in cannot
    (root / "small-cifar" / "mine.txt").unlink()
    monkeypatch.setenv("MIXMIM_BENCH_OFFLINE", "1")
    assert "MIXMIM_BENCH_OFFLINE is set" in run("fetch-data", task, "--data-root", root, code=2).output


def test_a_download_of_something_else_is_kept_aside(run, tmp_path, cifar):
    _, task = cifar
    task.write_text(task.read_text().replace("[data]\n", "[data]\ncounts = { train = 7 }\n"))
    said = run("fetch-data", task, "--data-root", tmp_path / "data", code=2).output
    assert "is not what was expected" in said
    assert "data.counts.train: is 7" in said
    assert not (tmp_path / "data" / "small-cifar").exists()


# -- Hugging Face -----------------------------------------------------------------------------------


def table_of(rows, labels):
    """A parquet file as datasets writes them."""
    import pyarrow
    from pyarrow import parquet

    images = [{"bytes": copies.jpegs()[row], "path": f"{row}.jpg"} for row in rows]
    names = ["zero", "one", "two"]
    features = {"img": {"_type": "Image"}, "fine": {"names": names, "_type": "ClassLabel"}}
    table = pyarrow.table({"img": images, "fine": pyarrow.array(labels, pyarrow.int64()), "other": labels})
    file = io.BytesIO()
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), file
    )
    return file.getvalue()


TRAIN, TEST = range(60), range(60, 90)


@pytest.fixture
def hf(tmp_path):
    """A dataset of the Hub and a task file of it."""
    task = tmp_path / "hub-digits.toml"
    task.write_text(
        HEAD.format(3)
        + """[data]
[[data.layouts]]
layout = "hf:me/digits"
splits = { train = "train", test = "validation" }
image = "img"
label = "fine"
[split]
train = "train[:80%]"
val = "train[80%:]"
test = "test"
"""
    )
    files = {
        "README.md": b"# digits\n",
        "data/train-00000-of-00001.parquet": table_of(TRAIN, [row % 3 for row in TRAIN]),
        "data/validation-00000-of-00001.parquet": table_of(TEST, [row % 3 for row in TEST]),
    }
    with hub.serving(files) as server:
        yield server, task


def fetch(server, task, root, home, **changes):
    """Run the command in a process of its own, which reads the address of the Hub when it starts."""
    environment = {
        **os.environ, "HF_ENDPOINT": server.address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0", **changes,
    }  # fmt: skip
    command = [sys.executable, "-m", "mixmim_bench.cli", "fetch-data", str(task), "--data-root", str(root)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_a_dataset_of_the_hub_is_a_task(run, tmp_path, hf):
    server, task = hf
    root = tmp_path / "data"
    done = fetch(server, task, root, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "me/digits at 01234567" in done.stdout
    (spec,) = select_tasks([str(task)], ())
    data = open_task(spec, DataRoots(base=root))
    assert data.classes == ("zero", "one", "two")
    assert data.counts == {"train": 48, "val": 12, "test": 30}
    part = data.parts["test"]
    assert part.labels.tolist() == [row % 3 for row in TEST]
    assert part.images.digest(4) == hashlib.sha256(copies.jpegs()[64]).digest()[:16]
    assert json.loads((root / "hub-digits" / "source.json").read_text())["commit"] == hub.COMMIT
    assert sorted(path.name for path in (root / "hub-digits").iterdir()) == [
        "source.json", "test-00000.parquet", "train-00000.parquet",
    ]  # fmt: skip
    run(
        "run", "-t", task, "-m", "test_vit=random", "-p", "knn", "--data-root", root,
        "--results", tmp_path / "results",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"fine"', '"fin"', "me/digits has no column 'fin'; did you mean fine"),
        ('test = "validation"', 'test = "test"', "me/digits has no split 'test'"),
        ("hf:me/digits", "hf:me/digit", "was not downloaded"),
    ],
)
def test_what_is_wrong_with_a_dataset_of_the_hub_is_named(tmp_path, hf, old, new, said):
    server, task = hf
    assert task.read_text().count(old) == 1
    task.write_text(task.read_text().replace(old, new))
    done = fetch(server, task, tmp_path / "data", tmp_path / "home")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "data" / "hub-digits").exists()


def test_another_dataset_in_its_folder_is_not_taken_for_it(run, tmp_path, hf):
    _, task = hf
    folder = tmp_path / "data" / "hub-digits"
    for part, rows in (("train", TRAIN), ("test", TEST)):
        copies.write(folder / f"{part}-00000.parquet", table_of(rows, [row % 3 for row in rows]))
    args = ("run", "-t", task, "-m", "test_vit=random", "--data-root", tmp_path / "data")
    assert "source.json, which fetch-data writes" in run(*args, code=2).output
    copies.write(
        folder / "source.json", json.dumps({"repository": "you/digits", "config": "", "revision": "main"})
    )
    assert "which holds another" in run(*args, code=2).output


def test_the_suites_own_sets_have_what_it_takes(tmp_path):
    """Every dataset of torchvision in the suite can be asked for by name."""
    from mixmim_bench.fetching import can_fetch
    from mixmim_bench.suite.selection import load_tasks

    roots = DataRoots(base=tmp_path)
    able = {name for name, task in load_tasks().items() if can_fetch(task, roots)}
    assert {"cifar10", "cifar100", "dtd", "flowers102", "food101", "mnist", "pets", "svhn", "voc2007"} <= able
    assert "imagenet1k" not in able
