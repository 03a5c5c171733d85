"""Compare measured scores of published weights with the published ones."""

from collections.abc import Iterable
from dataclasses import dataclass

from mixmim_bench.report.published import of_weights
from mixmim_bench.specs import ModelSpec, RunRecord, Weights

WITHIN, BELOW, ABOVE = "within", "below", "above"
VERDICTS = {
    WITHIN: "published within the interval",
    BELOW: "measured below published",
    ABOVE: "measured above published",
}


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A published score, in percent, beside that of a run with its 95 % interval.

    Attributes:
        verdict: whether the published score lies within the interval of the measured one; if not, whether the
            measured score is below or above the published one.
    """

    model: str
    weights: str
    metric: str
    published: float
    measured: float
    low: float
    high: float
    n: int
    verdict: str
    run_id: str


def reproductions(records: Iterable[RunRecord], models: Iterable[ModelSpec]) -> list[Reproduction]:
    """Compare the records of published weights; weights without a published score are left out.

    A published score is rounded, so half of its last digit belongs to the interval.
    """
    known = {model.name: model for model in models}
    found = []
    for record in records:
        if record.model not in known:
            continue
        sha256 = record.identity["weights"]["sha256"]
        weights = Weights(kind="file", name=record.weights, sha256=sha256)
        for metric, published in of_weights(known[record.model], weights).items():
            score = record.scores.get(metric)
            if score is None:
                continue
            value, low, high = (100 * score[key] for key in ("value", "low", "high"))
            rounding = 0.5 * 10.0 ** -len(f"{published}".partition(".")[2])
            within = low - rounding <= published <= high + rounding
            found.append(
                Reproduction(
                    model=record.model,
                    weights=record.weights,
                    metric=metric,
                    published=published,
                    measured=value,
                    low=low,
                    high=high,
                    n=score.get("n", 0),
                    verdict=WITHIN if within else BELOW if value < published else ABOVE,
                    run_id=record.run_id,
                )
            )
    return found
