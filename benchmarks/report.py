"""Time of a report on many records, and of interactions with its page in Chromium.

    python benchmarks/report.py [--models 40] [--tasks 25] [--protocols 2] [--seeds 5] [--page-only]

Makes a results folder with predictions of 200 images per record, the same at each call; runs `mixmim-bench
report` on it without and with what it keeps (plots, paired tests); and times what a reader does in
report.html, up to the next frame of the browser. Prints a Markdown table.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from records import cost, made

from mixmim_bench.report.contents import read_contents
from mixmim_bench.report.page import to_html
from mixmim_bench.suite.records import RunStore

IMAGES = 200
PROTOCOLS = ("linear", "fewshot", "knn", "finetune")
FILL = """(id, value) => {
  const field = document.querySelector(id);
  field.value = value;
  for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, { bubbles: true }));
}"""
# what a reader does -> JavaScript that does it
INTERACTIONS = {
    "sort by a score": "document.querySelector('#board thead th:nth-child(7)').click()",
    "sort by model": "document.querySelector('#board thead th:nth-child(1)').click()",
    "next page": "document.querySelector('.dt-paging-button.next').click()",
    "search 'model1'": f"({FILL})('.dt-search input', 'model1')",
    "clear the search": f"({FILL})('.dt-search input', '')",
    "at most 40 M parameters": f"({FILL})('#most-params', '40')",
    "no limit": f"({FILL})('#most-params', '')",
    "one protocol": f"({FILL})('#protocol', 'linear')",
    "all protocols": f"({FILL})('#protocol', '')",
    "no intervals": "document.querySelector('#intervals').click()",
    "100 rows": f"({FILL})('.dt-length select', '100')",
    "plot another score": f"({FILL})('#plot-column', '1')",
    "plot against parameters": f"({FILL})('#plot-axis', 'params')",
    "compare another pair": f"({FILL})('#second', '3')",
    "open a record": "document.querySelector('button.score').click()",
}
TIMED = """async (action) => {
  const start = performance.now();
  (0, eval)(action);
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  return performance.now() - start;
}"""
UNDO = "() => document.querySelector('dialog[open]')?.close()"


@click.command()
@click.option("--models", default=40)
@click.option("--tasks", default=25)
@click.option("--protocols", default=2, type=click.IntRange(1, len(PROTOCOLS)))
@click.option("--seeds", default=5)
@click.option("--rounds", default=3, help="Of the page.")
@click.option("--page-only", is_flag=True, help="Make report.html alone: no tables and no plots.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="For the results; kept, and used again if it has records. Default: temporary.",
)
def main(
    models: int, tasks: int, protocols: int, seeds: int, rounds: int, page_only: bool, folder: Path | None
) -> None:
    """Make records, report twice, and use the page."""
    with tempfile.TemporaryDirectory() as name:
        store = RunStore(folder or Path(name))
        if not store.runs.is_dir():
            make_records(store, models, tasks, PROTOCOLS[:protocols], seeds)
        if page_only:
            times = {"make report.html": make_page(store)}
        else:
            forget_report(store)
            times = {"`mixmim-bench report`, cold": report(store), "again, warm": report(store)}
        busy = os.getloadavg()[0]
        page = store.folder / "report.html"
        records = models * tasks * protocols * seeds
        print(f"| {records:,} records, {models:,} rows, page of {page.stat().st_size / 1e6:.1f} MB | |")
        print("| --- | --- |")
        for what, (seconds, cpu_s) in times.items():
            print(f"| {what} | {seconds:.1f} s ({cpu_s:.1f} s of CPU time) |")
        for what, values in use(page, rounds).items():
            print(f"| {what} | {statistics.median(values):.0f} ms (at most {max(values):.0f}) |")
        print(f"\nLoad average {busy:.0f} on {os.cpu_count()} cores.")


def make_records(store: RunStore, models: int, tasks: int, protocols: tuple[str, ...], seeds: int) -> None:
    """Save records of models that differ in accuracy, with their predictions."""
    rng = np.random.default_rng(0)
    store.prepare()
    ids, y = np.array([f"{row:05d}" for row in range(IMAGES)]), np.zeros(IMAGES, np.int32)
    for model in range(models):
        name = f"model{model:03d}"
        for at in ("own", "run"):
            store.save_cost(f"{name}-{at}", cost(name, 1.0 + model, params_m=5.0 + 3 * model))
        for task in range(tasks):
            suites = ("paper",) if task < 8 else ("extended",)
            for protocol in protocols:
                for seed in range(seeds):
                    share = 0.5 + 0.4 * model / models + 0.05 * rng.standard_normal()
                    hits = rng.random(IMAGES) < share
                    best = np.where(hits, 0, 1)[:, None].repeat(5, axis=1).astype(np.int32)
                    record = made(name, float(hits.mean()), f"task{task:02d}", protocol, seed, suites=suites)
                    store.save(record, {"ids": ids, "y": y, "best": best})


def forget_report(store: RunStore) -> None:
    """Remove all but the records and costs."""
    for path in store.folder.iterdir():
        if path not in (store.runs, store.costs):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def report(store: RunStore) -> tuple[float, float]:
    """Return the seconds of a process that reports, and of CPU time with its children."""
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, "-m", "mixmim_bench.cli", "report", "--results", str(store.folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu_s


def make_page(store: RunStore) -> tuple[float, float]:
    """Write report.html from what is kept; returns seconds, and seconds of CPU time."""
    start, cpu_start = time.perf_counter(), time.process_time()
    contents = read_contents(store)
    (store.folder / "report.html").write_text(to_html(contents))
    contents.pairs.save()
    return time.perf_counter() - start, time.process_time() - cpu_start


def use(path: Path, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of opening the page and of each interaction, per round."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            page: Any = browser.new_page(viewport={"width": 1280, "height": 900})
            start = time.perf_counter()
            page.goto(path.as_uri())
            page.wait_for_selector("#board tbody tr")
            times.setdefault("open the page", []).append(1000 * (time.perf_counter() - start))
            for what, action in INTERACTIONS.items():
                times.setdefault(what, []).append(page.evaluate(TIMED, action))
                page.evaluate(UNDO)
            page.close()
        browser.close()
    return times


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
