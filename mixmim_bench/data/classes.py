"""The standard order of classes, and the mapping of labels to it."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import resources

import numpy as np

from mixmim_bench.data.layout import LayoutError
from mixmim_bench.errors import a_few, counted, nearest


def _imagenet1k() -> list[tuple[str, ...]]:
    """Return the 1,000 synsets in sorted order, with their WordNet names (from timm)."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    return [(synset, info.label_name_to_description(synset)) for synset in info.label_names()]


def _some_of_imagenet1k(file: str) -> list[tuple[str, ...]]:
    """Return the synsets of a variant of ImageNet with some of the classes, in sorted order (from timm)."""
    return [(line,) for line in resources.files("timm.data").joinpath(f"_info/{file}").read_text().split()]


LISTS: dict[str, Callable[[], list[tuple[str, ...]]]] = {
    "imagenet1k": _imagenet1k,
    "imagenet-a": partial(_some_of_imagenet1k, "imagenet_a_synsets.txt"),
    "imagenet-r": partial(_some_of_imagenet1k, "imagenet_r_synsets.txt"),
}


class Classes:
    """The classes of a task: `names` in label order, and their aliases."""

    def __init__(self, aliases: Iterable[Sequence[str]]) -> None:
        listed = [tuple(names) for names in aliases]
        self.names = tuple(names[0] for names in listed)
        self.rank: dict[str, int] = {}
        ambiguous = set()  # names shared by several classes
        for label, names in enumerate(listed):
            for name in names:
                if self.rank.setdefault(name, label) != label:
                    ambiguous.add(name)
        for name in ambiguous:
            if name in self.names:
                raise LayoutError(f"two classes are named {name!r}", "data.options.classes")
            del self.rank[name]

    @classmethod
    def of_option(cls, option: int | str | Sequence[str]) -> "Classes":
        """Create from the option `classes`: a key of LISTS, names, or their number; raises LayoutError."""
        if isinstance(option, int):
            return cls([(str(number),) for number in range(option)])
        if not isinstance(option, str):
            return cls([(name,) for name in option])
        if option not in LISTS:
            raise LayoutError(
                f"no list of classes {option!r}; {nearest(option, LISTS)}", "data.options.classes"
            )
        return cls(LISTS[option]())

    def __len__(self) -> int:
        return len(self.names)

    def label(self, name: str, where: str) -> int:
        """Return the label of a class; raises LayoutError for an unknown name."""
        if name not in self.rank:
            raise LayoutError(f"{where}: no class {name!r}; {nearest(name, self.rank)}")
        return self.rank[name]

    def check_same(self, found: Iterable[str], where: str, some: bool = False) -> None:
        """Raise LayoutError if the given classes differ from these; if `some`, classes may be missing."""
        names = set(found)
        if wrong := sorted(names - set(self.names)):
            kind = "is not a class" if len(wrong) == 1 else "are not classes"
            raise LayoutError(f"{where}: {a_few(wrong)} {kind} of the task")
        if (not_found := sorted(set(self.names) - names)) and not some:
            raise LayoutError(
                f"{where}: {counted(len(not_found), 'class', 'classes')} missing: {a_few(not_found)}"
            )


class Order:
    """The mapping from a copy's labels to the standard order, learnt from images that name their class."""

    def __init__(self, classes: Classes) -> None:
        self.classes = classes
        self.standard: dict[int, int] = {}
        self.seen: dict[int, str] = {}  # label -> the image it was learnt from

    def learn(self, label: int, name: str, image: str) -> None:
        """Learn from one image; raises LayoutError for a contradiction."""
        standard = self.classes.label(name, image)
        known = self.standard.setdefault(label, standard)
        if known != standard:
            raise LayoutError(
                f"the label {label} is {self.classes.names[known]} for {self.seen[label]}, "
                f"but {name} for {image}"
            )
        self.seen.setdefault(label, image)

    def learn_names(self, names: Sequence[str], where: str) -> None:
        """Learn from names in the order of the copy's labels; unknown names are ignored."""
        for label, name in enumerate(names):
            if name in self.classes.rank:
                self.learn(label, name, f"{where} (class {label})")

    def map(self, labels: np.ndarray, where: str) -> np.ndarray:
        """Map labels (n,) to the standard order; raises LayoutError for unknown ones."""
        if all(label == standard for label, standard in self.standard.items()):
            return labels  # already in the standard order, as far as is known
        unknown = sorted(set(np.unique(labels).tolist()) - self.standard.keys())
        if unknown:
            raise LayoutError(
                f"{where}: its classes are not in the standard order, and no image names the class of "
                f"label {a_few([str(label) for label in unknown])}"
            )
        table = np.zeros(max(self.standard) + 1, dtype=np.int64)
        for label, standard in self.standard.items():
            table[label] = standard
        return table[labels]
