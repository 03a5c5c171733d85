"""docs/notebook.ipynb: its cells run in order, and it is kept without outputs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "notebook.ipynb"

# what a kernel does with the cells of a notebook, without one: the names of all cells are shared, and the
# value of an expression at the end of a cell is shown
KERNEL = """
import ast, json, sys

shared = {"__name__": "__main__"}
for number, cell in enumerate(json.load(sys.stdin)):
    tree = ast.parse("".join(cell), f"cell {number}")
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), shared)
    if last is not None:
        print(number, repr(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), shared)))
plt = shared["plt"]
drawn = [len(plt.figure(number).axes) for number in plt.get_fignums()]
found = {"rows": len(shared["both"]), "tests": list(shared["differences"]["test"])}
print(json.dumps({"figures": len(drawn), **found}))
"""


def cells(kind):
    return [
        each["source"]
        for each in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
        if each["cell_type"] == kind
    ]


def execute(sources, folder):
    """Run cells in a fresh process, in a copy of what the notebook reads."""
    shutil.copytree(ROOT / "results" / "shown", folder / "results" / "shown")
    (folder / "docs").mkdir()
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", KERNEL],
        input=json.dumps(sources),
        cwd=folder / "docs",
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


def test_the_cells_run_in_order(tmp_path):
    done = execute(cells("code"), tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["figures"] == 3 and found["rows"] >= 8 and found["tests"] == 4 * ["McNemar mid-p"]
    assert "mixmim-tiny" in done.stdout


def test_a_cell_that_fails_is_noticed(tmp_path):
    done = execute([*cells("code")[:2], ["frame['no such column']"]], tmp_path)
    assert done.returncode and "no such column" in done.stderr and "cell 2" in done.stderr


def test_it_is_kept_without_outputs():
    book = json.loads(NOTEBOOK.read_text("utf-8"))
    assert book["nbformat"] == 4 and len(cells("code")) >= 6 and len(cells("markdown")) >= 6
    for cell in book["cells"]:
        assert cell["cell_type"] == "markdown" or (not cell["outputs"] and cell["execution_count"] is None)
