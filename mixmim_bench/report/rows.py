"""Rows of the long table: the newest ones of each group, one for all seeds, and names for them."""

from collections.abc import Sequence

import pandas as pd

from mixmim_bench.report.text import one_line

ROW = ("model", "weights", "precision")
COLUMN = ("task", "protocol")
VERSIONS = ("task_version", "metric_version", "protocol_version")


def newest(rows: pd.DataFrame, by: Sequence[str], keys: Sequence[str], of: str = "") -> pd.DataFrame:
    """Keep, in each group, the rows with the highest keys, or those that share the value `of` with them."""
    shared = [*by, *([of] if of else keys)]
    best = rows.sort_values(list(keys), kind="stable").drop_duplicates(list(by), keep="last")
    return rows.merge(best[shared], on=shared)


def over_seeds(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Replace the seeds of each group by one row: of several, the mean ± one standard deviation."""
    values = rows.groupby(list(by))["value"]
    mean, spread = values.transform("mean"), values.transform("std")
    several = values.transform("size") > 1
    low, high = rows["low"].mask(several, mean - spread), rows["high"].mask(several, mean + spread)
    return rows.assign(value=mean, low=low, high=high).drop_duplicates(list(by))


def names_of(rows: pd.DataFrame) -> dict[tuple[str, str, str], str]:
    """Return a name for each ROW: with weights if they are random or a model has several, and precision."""
    keys = {(row.model, row.weights, row.precision): bool(row.random_init) for row in rows.itertuples()}
    names = {}
    for key, random in keys.items():
        others = [other for other in keys if other[0] == key[0] and other != key]
        differ = [any(other[place] != key[place] for other in others) for place in (1, 2)]
        about = [key[place] for place, shown in ((1, random or differ[0]), (2, differ[1])) if shown]
        names[key] = one_line(f"{key[0]} ({', '.join(about)})" if about else key[0])
    return names
