"""Writing the report of a results folder: leaderboard and plots, from the records alone."""

from pathlib import Path

from mixmim_bench.atomic import write_whole
from mixmim_bench.models.build import own_size
from mixmim_bench.models.registry import find_model
from mixmim_bench.report.plots import flops_vs_accuracy, gmacs_of_runs
from mixmim_bench.report.tables import leaderboard, to_frame, to_markdown
from mixmim_bench.specs import Cost
from mixmim_bench.store import RunStore


def write_report(store: RunStore) -> tuple[str, list[Path], list[str]]:
    """Write leaderboard.csv, leaderboard.md and the plots.

    Returns the Markdown, the paths written, and the files that should be records and are not.
    """
    broken: list[str] = []
    records = store.records(broken)
    board = leaderboard(records)
    costs = list(store.read_costs().values())
    at_own_size = _at_own_size({row.model for row in board.cells}, costs)
    paths = [store.folder / "leaderboard.csv", store.folder / "leaderboard.md"]
    markdown = to_markdown(board, at_own_size) if board.cells else "No run is finished yet."
    write_whole(paths[0], to_frame(board, at_own_size).to_csv(index=False).encode())
    write_whole(paths[1], f"{markdown}\n".encode())
    gmacs = gmacs_of_runs(records, costs)
    paths += flops_vs_accuracy(records, gmacs, store.folder / "plots")
    return markdown, paths, broken


def _at_own_size(models: set[str], costs: list[Cost]) -> dict[str, Cost]:
    """Find what each model costs at its own image size, where that was measured."""
    found = {}
    for name in models:
        size = own_size(find_model(name))
        found.update({c.model: c for c in costs if c.model == name and c.image_size == size})
    return found
