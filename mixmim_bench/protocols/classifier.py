"""The classifier that weights come with, on the classes of a task."""

import numpy as np

from mixmim_bench.data.dataset import Split
from mixmim_bench.features import LOGITS
from mixmim_bench.protocols.contract import Fitted
from mixmim_bench.protocols.outputs import IMAGENET, outputs_of
from mixmim_bench.protocols.workbench import Workbench
from mixmim_bench.scoring.calibration import confidences
from mixmim_bench.scoring.predictions import ClassifierScores

OF_IMAGENET1K = 1000  # classes, whose order all libraries share


def fit_own_head(bench: Workbench) -> Fitted:
    """Classify with the weights' own classifier; nothing is trained."""
    run = bench.run
    outputs = outputs_of(run.task, bench.classes, run.classes)
    notes = []
    if len(outputs) == run.classes and not (run.task.classifier == IMAGENET and run.classes == OF_IMAGENET1K):
        notes.append("the classifier's outputs are taken to be the classes of the task, in the same order")
    if len(outputs) < run.classes:
        notes.append(f"only {len(outputs)} of the classifier's {run.classes:,} outputs are compared")

    def predict(split: Split) -> ClassifierScores:
        logits = bench.features(split, LOGITS)
        scores = np.asarray(logits.x[:, outputs])
        return ClassifierScores(logits.ids, logits.y, scores, confidences(scores))

    return Fitted(predict, chosen={"classes": run.classes}, notes=tuple(notes))
