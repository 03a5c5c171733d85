"""The leaderboard as LaTeX, for papers: needs the package booktabs."""

import re
from collections.abc import Mapping

from mixmim_bench.report.leaderboard import Column, Leaderboard
from mixmim_bench.report.marks import BEST, SECOND, TIED, Marks
from mixmim_bench.report.text import one_line
from mixmim_bench.specs import Cost

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}
_ANY_SPECIAL = re.compile("|".join(map(re.escape, _SPECIAL)))


def latex(text: str) -> str:
    """Escape a text so that LaTeX shows it as it is."""
    return _ANY_SPECIAL.sub(lambda found: _SPECIAL[found[0]], one_line(text))


def to_latex(board: Leaderboard, costs: Mapping[str, Cost], marks: Mapping[Column, Marks]) -> str:
    """Return the leaderboard as a tabular: grouped by task, percent, the best bold and the second underlined.

    Ties with the highest score have an asterisk. Rows with other settings are left out.
    """
    columns = board.columns
    tasks: dict[str, list[str]] = {}
    for task, protocol in columns:
        tasks.setdefault(task, []).append(protocol)
    if not columns:
        return "% no run is finished yet"
    heads = " & ".join(f"\\multicolumn{{{len(p)}}}{{c}}{{{latex(t)}}}" for t, p in tasks.items())
    names = " & ".join(latex(protocol) for _, protocol in columns)
    lines = [
        "% \\usepackage{booktabs}; bold: better than all, underlined: than all but that; *: not shown lower",
        f"\\begin{{tabular}}{{llrr{'r' * len(columns)}}}",
        "\\toprule",
        f" & & & & {heads} \\\\",
        f"Model & Weights & Params (M) & FLOPs (G) & {names} \\\\",
        "\\midrule",
    ]
    for place, row in enumerate(board.rows):
        if row.settings:
            continue
        cost = row.cost(costs)
        numbers = [f"{cost.params_m:.1f}", f"{cost.gmacs:.1f}"] if cost else ["--", "--"]
        weights = f"{row.weights}, {row.variant}" if row.variant else row.weights
        cells = [_cell(board, place, column, marks) for column in columns]
        # an empty group, since a name that begins with [ or * would be read as an argument
        lines.append(" & ".join(["{}" + latex(row.model), latex(weights), *numbers, *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _cell(board: Leaderboard, place: int, column: Column, marks: Mapping[Column, Marks]) -> str:
    cell = board.rows[place].cells.get(column)
    if cell is None:
        return "--"
    text = f"{100 * cell.value:.1f}"
    mark = marks[column].of_row.get(place, "") if column in marks else ""
    return {BEST: f"\\textbf{{{text}}}", SECOND: f"\\underline{{{text}}}", TIED: f"{text}*"}.get(mark, text)
