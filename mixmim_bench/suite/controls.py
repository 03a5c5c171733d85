"""Controls: runs beside those that a user selects, which show what the scores of probes are worth.

| control | what it shows |
| --- | --- |
| `pixels` | what a probe finds in the image itself |
| the same network with random weights | what the architecture contributes, without any training |
| `TASK@permuted` | that a probe cannot learn from labels that say nothing of the images |
| `TASK@noise50`, 75, 90, 100 | that the score falls with the signal, to chance at 100 |

Only probes on frozen features of image classes have controls; what the others would cost is a training each.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from mixmim_bench import facts
from mixmim_bench.data.dataset import TaskData, with_permuted_labels
from mixmim_bench.errors import BenchError
from mixmim_bench.protocols.contract import FrozenProtocol
from mixmim_bench.registry import PIXELS, find_model
from mixmim_bench.specs import NO_WEIGHTS, NOISE, PERMUTED, RANDOM
from mixmim_bench.suite.plan import ModelChoice, Planned
from mixmim_bench.suite.selection import CONTROLLED, in_variant
from mixmim_bench.suite.wanted import Say, Wanted

PERCENT = (50, 75, 90, 100)
Opened = tuple[Wanted, TaskData]


def probed(opened: Sequence[Opened]) -> list[Opened]:
    """Return the tasks that have controls, with their probes alone; raises BenchError if there are none."""
    found = []
    for wanted, data in opened:
        probes = [cls for cls in wanted.classes if issubclass(cls, FrozenProtocol)]
        if probes and wanted.task.kind in CONTROLLED:
            found.append((dataclasses.replace(wanted, classes=probes), data))
    if not found:
        raise BenchError(
            "--controls are those of probes on frozen features of image classes: select a classification "
            "task and -p linear, knn or fewshot"
        )
    return found


def without_signal(tasks: Sequence[Opened]) -> Iterator[Opened]:
    """Yield the variants of tasks whose labels are permuted or whose images are noise; nothing is listed."""
    for wanted, data in tasks:
        for variant in (PERMUTED, *(f"{NOISE}{percent}" for percent in PERCENT)):
            task = in_variant(wanted.task, variant)
            yield (
                dataclasses.replace(wanted, task=task),
                with_permuted_labels(data) if task.permuted else data,
            )


def without_training(models: Sequence[ModelChoice], say: Say) -> list[ModelChoice]:
    """Return the models with random weights, and the pixels."""
    pixels = find_model(PIXELS)
    for model in models:
        if model.spec.of_session:
            say(f"{model.spec.name}: no control with random weights, since it is an object of this session")
    return [
        *(
            dataclasses.replace(model, weights=RANDOM, classifier=None)
            for model in models
            if not model.spec.weightless and not model.spec.of_session
        ),
        ModelChoice(spec=pixels, weights=NO_WEIGHTS, preprocessing=facts.preprocessing(pixels)),
    ]


def with_layers(planned: Sequence[Planned], say: Say) -> list[Planned]:
    """Leave out runs of the pixels on layers of networks, which they do not have."""
    kept = []
    for each in planned:
        try:
            if each.run.model.name == PIXELS:
                facts.resolve_layers(each.run.model, each.run.size, each.protocol.frozen_layers())
        except BenchError as error:
            say(f"{each.run.label} is left out of the controls: {error}")
        else:
            kept.append(each)
    return kept
