"""Linear probes by VisBench (PyPI: visbench) and by this suite: same weights, preprocessing and images.

    python benchmarks/visbench.py [--env FOLDER] [--rounds 3] [--only probes --only changes]

A ResNet-10t, trained for one epoch on 8,000 images of Fashion-MNIST, is probed on 2,000 others and tested on
1,000 of the official test images, written as PNG files into class folders. Printed are scores and times,
VisBench's score under other settings and seeds, what both do if test images are training images, if the
command is repeated, and if weights or preprocessing change under the same name. VisBench is installed into an
environment of its own, in the folder of `--env` if given; what it does not pin comes from this one. Its
command line takes no weights of one's own, so its runs are scripts that call `visbench.run`. The folder of
`--images` contains the four .gz files of Fashion-MNIST (Debian: dataset-fashion-mnist).
"""

import gzip
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import click

VERSION = "0.27.0"
SIZE = 32
MEAN = 0.5
TRAIN, TEST, PRETRAIN = 2_000, 1_000, 8_000
TASK = """schema = 1
version = 1
kind = "classification"
title = "Clothes"
num_classes = 10
metrics = ["top1"]
reference = "arXiv 1708.07747"

[data]
layouts = ["folder:ImageFolder"]
root = "images"

[split]
train = "train[:80%]"
val = "train[80%:]"
test = "{test}"
"""
MODEL = """schema = 1
arch = "resnet10t"
weights = "weights.pth"
image_size = {size}
mean = [{mean}, {mean}, {mean}]
std = [0.5, 0.5, 0.5]
interpolation = "bicubic"
crop_pct = 1.0
"""


def visbench_jobs(jobs: list[dict]) -> None:
    """Run in VisBench's environment: probe once per job, and print a line of JSON for each."""
    import timm
    import torch
    import visbench
    from timm.data import create_transform
    from visbench.backbones.custom import CustomBackbone
    from visbench.backbones.timm_backbone import TimmBackbone
    from visbench.cache import FeatureCache
    from visbench.data import ImageFolderDataset

    class Timed(FeatureCache):
        """The cache, with the sum of all pooled features that it has returned."""

        total = 0.0

        def extract_dataset(self, *arguments, **keywords):
            features = super().extract_dataset(*arguments, **keywords)
            self.total += float(features["pooled"].double().abs().sum())
            return features

    def backbone_of(job: dict):
        if "folder" in job:
            return TimmBackbone(model_name=f"local-dir:{job['folder']}", name="resnet10t")
        network = timm.create_model("resnet10t", num_classes=0, global_pool="")
        network.load_state_dict(torch.load(job.get("weights", "weights.pth")), strict=False)
        size = job.get("size", SIZE)
        transform = create_transform(
            (3, size, size),
            interpolation="bicubic",
            mean=(job.get("mean", MEAN),) * 3,
            std=(0.5,) * 3,
            crop_pct=1.0,
        )
        return CustomBackbone(network, transform, name="resnet10t", image_size=job.get("stated_size", SIZE))

    for job in jobs:
        backbone = backbone_of(job)
        cache = Timed(root=Path(job.get("cache", "visbench-cache")), enabled=job.get("cached", True))
        probe = visbench.get_probe("classification", **job.get("settings", {}))
        seconds, fit = [], probe.fit

        def timed(*arguments, fit=fit, seconds=seconds):
            clock = time.perf_counter()
            fit(*arguments)
            seconds.append(time.perf_counter() - clock)

        probe.fit = timed
        done = visbench.run(
            backbone,
            probe,
            ImageFolderDataset(Path("images") / job.get("test", "test"), split="test"),
            train_dataset=ImageFolderDataset(Path("images/train"), split="train"),
            cache=cache,
            results="visbench.jsonl",
            seed=job.get("seed", 0),
        )
        stats = cache.stats()
        row = {
            "top1": done.metrics["top1"],
            "probe_s": seconds[0],
            "from_cache": stats["hits"],
            "features": cache.total,
            "train_top1": (done.record.training or {}).get("train_top1"),
            "record": done.record.to_dict(),
        }
        print("RESULT " + json.dumps(row), flush=True)


class Tools:
    """The commands of both tools in a folder with images, weights and task files."""

    def __init__(self, folder: Path, python: Path, threads: int, rounds: int) -> None:
        self.folder = folder
        self.python = python
        self.threads = threads
        self.rounds = rounds
        self.cpu_s = 0.0  # of the last command

    def visbench(self, *jobs: dict) -> tuple[list[dict], float]:
        """Run jobs in one process; returns a dictionary for each, and the seconds of the process."""
        command = [self.python, "-P", "-W", "ignore", Path(__file__).resolve(), "--jobs", json.dumps(jobs)]
        done, seconds = self._start(command)
        if done.returncode:
            raise SystemExit(done.stderr)
        lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        return [json.loads(line.removeprefix("RESULT ")) for line in lines], seconds

    def ours(self, task: str = "clothes", place: str = "ours") -> tuple[dict, str, float]:
        """Run `linear`; returns the newest record, the messages and the seconds of the process."""
        command = [sys.executable, "-m", "mixmim_bench.cli", "run", "-m", "resnet10t-mine.toml"]
        command += ["-t", f"{task}.toml", "-p", "linear", "--threads", str(self.threads)]
        command += ["--results", f"{place}-results"]
        done, seconds = self._start(command, MIXMIM_BENCH_CACHE=str(self.folder / f"{place}-cache"))
        runs = sorted(
            (self.folder / f"{place}-results" / "runs").glob("*.json"), key=lambda p: p.stat().st_mtime
        )
        record = json.loads(runs[-1].read_text()) if runs else {}
        return record, done.stdout + done.stderr, seconds

    def _start(self, command: list, **more: str) -> tuple[subprocess.CompletedProcess, float]:
        env = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "MIXMIM_BENCH_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
            **more,
        }
        clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return done, time.perf_counter() - clock


def visbench_python(folder: Path) -> Path:
    """Return the interpreter of VisBench's environment, which borrows from this one what it does not pin."""
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, clear=True, with_pip=True)
        library = next((folder / "lib").glob("python*")) / "site-packages"
        (library / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", f"visbench=={VERSION}"], check=True, stdout=sys.stderr
        )
        (folder / "whole").touch()
    return python


def prepare(source: Path, folder: Path) -> None:
    """Write images, a checkpoint, and task and model files."""
    import numpy as np
    import timm
    import torch
    from PIL import Image

    def read(name: str, count: int):
        with gzip.open(source / f"{name}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)[:count]
        with gzip.open(source / f"{name}-labels-idx1-ubyte.gz") as file:
            return pixels, np.frombuffer(file.read(), np.uint8, offset=8)[:count].astype(np.int64)

    parts = {"train": read("train", TRAIN + PRETRAIN), "test": read("t10k", TEST)}
    for part, count in (("train", TRAIN), ("test", TEST)):
        for row in range(count):
            pixels, label = parts[part][0][row], parts[part][1][row]
            place = folder / "images" / part / str(label)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{part}{row:05d}.png")
    torch.set_num_threads(1)  # more hinder each other on small batches
    torch.manual_seed(0)
    network = timm.create_model("resnet10t", num_classes=10)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    pixels, labels = (torch.from_numpy(array[TRAIN:].copy()) for array in parts["train"])
    for images, targets in zip(pixels.split(64), labels.split(64), strict=True):
        resized = torch.nn.functional.interpolate(images[:, None] / 255, (SIZE, SIZE), mode="bicubic")
        loss = torch.nn.functional.cross_entropy(
            network((resized.expand(-1, 3, -1, -1) - MEAN) / 0.5), targets
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(network.state_dict(), folder / "weights.pth")
    shutil.copy(folder / "weights.pth", folder / "first.pth")
    change_weights(folder)
    for name, test in (("clothes", "test"), ("same", "train"), ("copied", "copy")):
        (folder / f"{name}.toml").write_text(TASK.format(test=test))
    shutil.copytree(folder / "images" / "train", folder / "images" / "copy")
    (folder / "resnet10t-mine.toml").write_text(MODEL.format(size=SIZE, mean=MEAN))


def change_weights(folder: Path) -> None:
    """Write two checkpoints that differ from the first beyond the first MiB of one tensor."""
    import torch

    for name in ("noise", "reversed"):
        weights = torch.load(folder / "first.pth")
        tail = weights["layer4.0.conv2.weight"].view(-1)[(1 << 20) // 4 :]
        changed = tail.flip(0) if name == "reversed" else tail + 0.3 * tail.std() * torch.randn(len(tail))
        tail.copy_(changed)
        torch.save(weights, folder / f"{name}.pth")


def write_timm_folder(folder: Path, weights: str) -> None:
    """Write a folder that timm opens as `local-dir:`, with the weights of a checkpoint."""
    place = folder / "timm-folder"
    place.mkdir(exist_ok=True)
    shutil.copy(folder / weights, place / "pytorch_model.bin")
    config = {
        "architecture": "resnet10t",
        "num_classes": 10,
        "pretrained_cfg": {
            "input_size": [3, SIZE, SIZE],
            "mean": [MEAN] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "num_classes": 10,
            "pool_size": [1, 1],
            "first_conv": "conv1.0",
            "classifier": "fc",
        },
    }
    (place / "config.json").write_text(json.dumps(config))


def percent(value: float) -> str:
    """Format a share."""
    return f"{100 * value:.1f} %"


def compare_probes(tools: Tools) -> None:
    """Score and time both, cold and repeated, in turns."""
    times: dict[str, dict[str, list[float]]] = {}

    def note(what: str, tool: str, seconds: float) -> None:
        times.setdefault(what, {}).setdefault(tool, []).append(seconds)

    for _ in range(tools.rounds):
        for place in ("ours-cache", "ours-results", "visbench-cache"):
            shutil.rmtree(tools.folder / place, ignore_errors=True)
        record, _, seconds = tools.ours()
        note("command, cold", "ours", seconds)
        note("command, cold, CPU", "ours", tools.cpu_s)
        note("probe", "ours", record["timings"]["fit_s"])
        (first,), seconds = tools.visbench({})
        note("command, cold", "VisBench", seconds)
        note("command, cold, CPU", "VisBench", tools.cpu_s)
        note("probe", "VisBench", first["probe_s"])
        repeated, said, seconds = tools.ours()
        note("command, repeated", "ours", seconds)
        note("command, repeated, CPU", "ours", tools.cpu_s)
        (second,), seconds = tools.visbench({})
        note("command, repeated", "VisBench", seconds)
        note("command, repeated, CPU", "VisBench", tools.cpu_s)
    score = record["scores"]["top1"]
    print(
        f"ours: top-1 {percent(score['value'])} ({percent(score['low'])} to {percent(score['high'])}), "
        f"{record['chosen']}, counts {record['counts']}"
    )
    print(
        f"VisBench: top-1 {percent(first['top1'])}, on train {percent(first['train_top1'])}; "
        f"fields {sorted(first['record'])}"
    )
    for what, each in times.items():
        middle = {tool: statistics.median(seconds) for tool, seconds in each.items()}
        print(
            f"{what}: ours {middle['ours']:.2f} s, VisBench {middle['VisBench']:.2f} s, "
            f"ratio {middle['VisBench'] / middle['ours']:.2f}"
        )
    finished = next((line for line in said.splitlines() if "finished" in line), "")
    print(f"repeated, ours: same record {repeated == record}, {finished!r}")
    lines = (tools.folder / "visbench.jsonl").read_text().splitlines()
    print(
        f"repeated, VisBench: {second['from_cache']} features from the cache, probe trained again in "
        f"{second['probe_s']:.1f} s, same top-1 {second['top1'] == first['top1']}, "
        f"{len(lines)} lines in its results after {2 * tools.rounds} runs"
    )
    for name in ("ours-cache", "visbench-cache"):
        files = [path for path in (tools.folder / name).rglob("*") if path.is_file()]
        print(f"{name}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")


def vary_settings(tools: Tools) -> None:
    """Print VisBench's scores under other settings and seeds, on the same features."""
    settings: list[dict] = [{"lr": lr, "epochs": epochs} for lr in (1e-3, 1e-2, 1e-1) for epochs in (50, 200)]
    settings += [{"standardize": True}, {"weight_decay": 0.0}]
    jobs: list[dict] = [{"settings": each} for each in settings] + [{"seed": seed} for seed in range(5)]
    for job, done in zip(jobs, tools.visbench(*jobs)[0], strict=True):
        print(f"VisBench {job}: top-1 {percent(done['top1'])}, on train {percent(done['train_top1'])}")


def test_on_train(tools: Tools) -> None:
    """Print what both do if the test images are training images."""
    for name, part in (("same", "train"), ("copied", "copy")):
        _, said, _ = tools.ours(name, place=name)
        record = next((tools.folder / f"{name}-results" / "runs").glob("*.json"), None)
        notes = json.loads(record.read_text())["notes"] if record else []
        errors = [line for line in said.splitlines() if line.startswith("Error")]
        (done,), _ = tools.visbench({"test": part})
        print(f"{name} folder: ours {errors or notes}; VisBench top-1 {percent(done['top1'])}")


def change_things(tools: Tools) -> None:
    """Change weights and preprocessing under the same names; print whether old features are served."""
    changes: dict[str, dict] = {
        "beyond the first MiB, noise": {"weights": "noise.pth"},
        "beyond the first MiB, reversed": {"weights": "reversed.pth"},
        "mean 0.5 to 0.25": {"mean": 0.25},
        "size 32 to 48": {"size": 48},
        "size 32 to 48, image_size=48": {"size": 48, "stated_size": 48},
    }
    jobs = [{**change, "cached": cached} for change in changes.values() for cached in (True, False)]
    results = tools.visbench({}, *jobs)[0]
    print(f"VisBench, nothing changed: {percent(results[0]['top1'])}")
    for i, name in enumerate(changes):
        _report_stale(f"VisBench, custom, {name}", *results[1 + 2 * i : 3 + 2 * i])
    write_timm_folder(tools.folder, "first.pth")
    job = {"folder": str(tools.folder / "timm-folder")}
    tools.visbench(job)
    write_timm_folder(tools.folder, "noise.pth")
    _report_stale("VisBench, timm's local-dir:, noise", *tools.visbench(job, {**job, "cached": False})[0])

    first = tools.ours()[0]
    print(f"ours, nothing changed: run {first['run_id']}, top-1 {percent(first['scores']['top1']['value'])}")
    for name, change in changes.items():
        if "stated_size" in change:
            continue
        shutil.copy(tools.folder / change.get("weights", "first.pth"), tools.folder / "weights.pth")
        (tools.folder / "resnet10t-mine.toml").write_text(
            MODEL.format(size=change.get("size", SIZE), mean=change.get("mean", MEAN))
        )
        got = tools.ours()[0]
        print(
            f"ours, {name}: run {got['run_id']}, top-1 {percent(got['scores']['top1']['value'])}, features "
            f"computed in {got['timings']['extract_s']} s",
            flush=True,
        )


def _report_stale(name: str, got: dict, fresh: dict) -> None:
    stale = abs(got["features"] / fresh["features"] - 1) > 1e-6
    print(
        f"{name}: {got['from_cache']} features from the cache, top-1 {percent(got['top1'])}; without a cache "
        f"{percent(fresh['top1'])}: {'STALE' if stale else 'right'}"
    )


PARTS = {"probes": compare_probes, "settings": vary_settings, "same": test_on_train, "changes": change_things}


@click.command(help=__doc__)
@click.option("--env", type=Path, help="folder for VisBench's environment; default: a temporary one")
@click.option("--images", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
@click.option("--rounds", default=3)
@click.option("--threads", default=1)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)))
@click.option("--jobs", hidden=True)
def main(
    env: Path | None, images: Path, rounds: int, threads: int, only: tuple[str, ...], jobs: str | None
) -> None:
    """Prepare, and compare."""
    if jobs:
        visbench_jobs(json.loads(jobs))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        tools = Tools(folder, visbench_python((env or folder / "env").absolute()), threads, rounds)
        prepare(images, folder)
        for part in only or PARTS:
            PARTS[part](tools)


if __name__ == "__main__":
    main()
