"""The weights of the selected models, and of their classifiers."""

from collections.abc import Sequence

from mixmim_bench import facts
from mixmim_bench.data.dataset import TaskData
from mixmim_bench.errors import BenchError, MissingWeights
from mixmim_bench.protocols.contract import Protocol
from mixmim_bench.protocols.outputs import outputs_of
from mixmim_bench.specs import RANDOM, ModelSpec, TaskSpec, digest
from mixmim_bench.suite.plan import Classifier, ModelChoice
from mixmim_bench.suite.wanted import EMBEDDED, EMBEDDED_DENSE, Say, Wanted
from mixmim_bench.weights.download import Bar
from mixmim_bench.weights.find import resolve_weights


def choose_weights(
    model: ModelSpec,
    tasks: Sequence[TaskSpec],
    choice: str,
    protocols: Sequence[type[Protocol]],
    say: Say,
    bar: Bar | None,
) -> ModelChoice:
    """Find the weights of a model, and those with a classifier if protocols use it.

    Only the embedded suites fall back to random weights.
    """
    classifier = None
    if any(cls.uses_classifier for cls in protocols):
        alone = all(cls.uses_classifier for cls in protocols)
        classifier = _classifier(model, choice, say, bar, must=alone)
        if alone:
            assert classifier is not None
            facts.check_weights(model, classifier.weights)
            return ModelChoice(
                spec=model,
                weights=classifier.weights,
                preprocessing=facts.preprocessing(model),
                classifier=classifier,
            )
    try:
        weights = resolve_weights(model, choice, bar)
    except MissingWeights as error:
        own = [task.name for task in tasks if not {EMBEDDED, EMBEDDED_DENSE} & set(task.suites)]
        if own:
            raise MissingWeights(f"{error} (asked for by {', '.join(own)})", error.reason) from error
        weights = RANDOM
        say(
            f"{model.name}: {error.reason}"
            + (" (`mixmim-bench models` shows how to get them)" if model.weights else "")
            + ". Embedded tasks continue with RANDOM weights, marked as such in every table."
        )
    facts.check_weights(model, weights)
    return ModelChoice(
        spec=model, weights=weights, preprocessing=facts.preprocessing(model), classifier=classifier
    )


def _classifier(model: ModelSpec, choice: str, say: Say, bar: Bar | None, must: bool) -> Classifier | None:
    """Find weights with a classifier; if they are not a `must`, None with a message where there are none."""
    try:
        weights = resolve_weights(model, choice, bar, finetuned=True)
        if weights.random:
            raise BenchError(
                f"{model.name}: random weights have no trained classifier, which own-head scores"
            )
        classes = facts.classes_of(model, weights)
        if not classes:
            others = [each.name for each in model.weights if each.finetuned and each.name != weights.name]
            ways = f"; fine-tuned weights of it are {', '.join(others)}" if others else ""
            raise BenchError(
                f"{model.name}: {weights.name} has no classifier, which own-head scores{ways}; or use "
                "-p linear, which fits one"
            )
        facts.check_weights(model, weights)
    except BenchError as error:
        if must:
            raise
        say(f"{error}; own-head is skipped")
        return None
    return Classifier(weights, classes)


def digests_of_outputs(
    wanted: Wanted, data: TaskData, models: Sequence[ModelChoice], reasons: list[str]
) -> list[str]:
    """Return a digest of the outputs of each model's classifier that are the classes of a task.

    '' if it has none, or is of other classes, for which a reason is appended.
    """
    digests = []
    used = any(cls.uses_classifier for cls in wanted.classes)
    for model in models:
        digests.append("")
        if model.classifier is None or not used:
            continue
        try:
            outputs = outputs_of(wanted.task, data.classes, model.classifier.classes)
            digests[-1] = digest([model.classifier.classes, outputs.tolist()])
        except BenchError as error:
            reasons.append(f"{model.spec.name} ({model.classifier.weights.name}): {error}")
    return digests
