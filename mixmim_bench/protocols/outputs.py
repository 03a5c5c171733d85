"""Which outputs of a classifier are the classes of a task."""

from collections.abc import Sequence

import numpy as np

from mixmim_bench.errors import BenchError, a_few, counted
from mixmim_bench.specs import TaskSpec

IMAGENET = "imagenet"


def outputs_of(task: TaskSpec, classes: Sequence[str], outputs: int) -> np.ndarray:
    """Return the output (K,) of a classifier for each class of a task.

    Classes of tasks with `classifier = "imagenet"` are found by their synsets among the outputs of ImageNet's
    classifiers, which their number tells apart (1,000; 21,841 and so on). Otherwise the outputs must be those
    of the task, in its order.

    Raises:
        BenchError: the classifier has other classes.
    """
    if task.classifier == IMAGENET and outputs != len(classes):
        from timm.data import ImageNetInfo, infer_imagenet_subset

        subset = infer_imagenet_subset({"num_classes": outputs})
        if subset is not None:
            places = {synset: place for place, synset in enumerate(ImageNetInfo(subset).label_names())}
            if absent := [name for name in classes if name not in places]:
                raise BenchError(
                    f"its classifier of {outputs:,} classes ({subset}) has no {a_few(absent)} of {task.name}"
                )
            return np.array([places[name] for name in classes], dtype=np.int64)
    if outputs != len(classes):
        raise BenchError(
            f"its classifier has {counted(outputs, 'class', 'classes')}, and {task.name} has {len(classes)}"
        )
    return np.arange(outputs)
