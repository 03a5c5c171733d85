"""The rooms of the package: which may import which, and that the built package has them all."""

import ast
import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mixmim_bench"

# From the ground up: a room imports those below it, and itself.
FLOORS = [
    [
        "specs",
        "errors",
        "atomic",
        "cache",
        "codehash",
        "factcache",
        "seeding",
        "progress",
        "hyperparameters",
        "processes",
        "tomlfile",
    ],
    ["machine", "memory", "modelfile", "provenance", "registry"],
    ["data", "models", "scoring", "weights"],
    ["counting", "cost", "features", "probes"],
    ["facts", "training"],
    ["protocols"],
    ["suite", "inference"],
    ["report", "export", "heads", "pretraining", "reconstruction"],
    ["api", "doctor", "catalog", "fetching", "upkeep"],
    ["cli"],
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The rooms that a module imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mixmim_bench"):
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]


MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if room_of(path) != "__init__"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    own = room_of(path)
    assert own in FLOOR, f"{own} is in no floor of ARCHITECTURE.md: add it there and here"
    for other in imported(path):
        if other in FLOOR and other != own:
            assert FLOOR[other] < FLOOR[own] or (FLOOR[other] == FLOOR[own] and other not in beside(own)), (
                f"{path.relative_to(ROOT)} imports {other}, which is above {own}"
            )


def beside(room):
    """The rooms of the same floor that import this one: two rooms must not import each other."""
    same = [other for other in FLOORS[FLOOR[room]] if other != room]
    return [o for o in same if any(room in imported(p) for p in MODULES if room_of(p) == o)]


def test_setup_cfg_names_every_package():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = {line for line in config["options"]["packages"].split("\n") if line}
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"mixmim_bench.tasks"}


def test_every_import_is_declared():
    """A library that only comes along with another one may be gone one day."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    declared = {
        line.split("#")[0].split()[0].split(">=")[0].lower().replace("-", "_")
        for text in lists
        for line in text.split("\n")
        if line.strip() and not line.strip().startswith(("#", "%"))
    }
    called = {"PIL": "pillow", "sklearn": "scikit_learn"}
    import sys

    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in (
                {name.split(".")[0] for name in names} - {"mixmim_bench"} - set(sys.stdlib_module_names)
            ):
                assert called.get(name, name).lower() in declared, f"{path}: {name} is not in setup.cfg"


def test_architecture_describes_every_module():
    """By its file name, or by its name alone in a list of protocols or layouts."""
    words = set(re.findall(r"[\w.]+", (ROOT / "ARCHITECTURE.md").read_text()))
    modules = [path for path in MODULES if not path.name.startswith("__")]
    assert not [path for path in modules if not {path.name, path.stem} & words]
    named = {word for word in words if word.endswith(".py") and "/" not in word}
    known = {path.name for folder in (PACKAGE, ROOT / "tests") for path in folder.rglob("*.py")}
    assert not named - known - {"run_suite.py", "NAME.py"}
