"""An environment with OpenMMLab's packages, which pin old versions of others, beside this one.

It borrows torch and all else from here through a path file; what it installs itself is the extra `reference`.
"""

import importlib.metadata
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from mixmim_bench.specs import digest


def openmmlab_python(place: Path) -> Path:
    """Return the interpreter of the environment, which is made below `place` if it is not there."""
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("mixmim-bench") or ()
        if re.search(r"extra == ['\"]reference['\"]", requirement)
    ]
    ours = sysconfig.get_path("purelib")
    folder = place / digest([*wanted, ours, sys.version])
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, clear=True, with_pip=True)
        library = next((folder / "lib").glob("python*")) / "site-packages"
        (library / "borrowed.pth").write_text(f"{ours}\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *wanted], check=True)
        (folder / "whole").touch()
    return python
