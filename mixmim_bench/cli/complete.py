"""Completion of values in a shell: models, tasks, suites, protocols and presets.

A command is completed in a fraction of a second, so nothing here imports torch or timm.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Names = Callable[[], Iterable[str]]


def completing(names: Names, files: bool = False) -> Callable[..., list[CompletionItem]]:
    """Complete from names, and from files where an option takes a path too."""

    def complete(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
        del context, parameter
        if files and _looks_like_a_path(typed):
            return [CompletionItem(typed, type="file")]
        return [CompletionItem(name) for name in sorted(set(names())) if name.startswith(typed)]

    return complete


def _looks_like_a_path(text: str) -> bool:
    return text.startswith((".", "~")) or os.sep in text


def model_names() -> Iterable[str]:
    """Names and aliases of the registered models."""
    from mixmim_bench.registry import MODELS, by_name

    return by_name(MODELS)


def task_names() -> Iterable[str]:
    """Names of the suite's task files."""
    from mixmim_bench.suite.selection import task_folder

    return (path.stem for path in task_folder().glob("*.toml"))


def suite_names() -> Iterable[str]:
    """Names of the suites that tasks are in."""
    from mixmim_bench.suite.selection import load_tasks

    return (suite for task in load_tasks().values() for suite in task.suites)


def run_ids() -> Iterable[str]:
    """Ids of the runs in the default results folder."""
    return (path.stem for path in Path("results", "runs").glob("*.json"))


def protocol_names() -> Iterable[str]:
    """Names of the protocols of all kinds of tasks."""
    from mixmim_bench.protocols import load_protocols

    return (name for name, _ in load_protocols())


def preset_names() -> Iterable[str]:
    """Names of the presets of all protocols, and `auto`."""
    from mixmim_bench.protocols import all_presets
    from mixmim_bench.specs import AUTO

    return (AUTO, *all_presets())
