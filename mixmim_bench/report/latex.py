"""The leaderboard as LaTeX, for papers: needs the package booktabs."""

import re
from collections.abc import Mapping

from mixmim_bench.report.averages import Average, averages
from mixmim_bench.report.leaderboard import Column, Leaderboard
from mixmim_bench.report.marks import BEST, SECOND, TIED, Marks
from mixmim_bench.report.text import amount, one_line
from mixmim_bench.specs import Cost

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}"},
}
DAGGER, SKIPPED, GUESS = "$^\\dagger$", "$^\\ddagger$", "$^\\S$"
AVERAGED = ("mean", "norm.", "rank")
_ANY_SPECIAL = re.compile("|".join(map(re.escape, _SPECIAL)))


def latex(text: str) -> str:
    """Escape a text so that LaTeX shows it as it is."""
    return _ANY_SPECIAL.sub(lambda found: _SPECIAL[found[0]], one_line(text))


def to_latex(board: Leaderboard, costs: Mapping[str, Cost], marks: Mapping[Column, Marks]) -> str:
    """Return the leaderboard as a tabular: grouped by task, percent, the best bold and the second underlined.

    Ties with the highest score have an asterisk. Averages over tasks follow: mean, mean above chance, and
    mean rank. Rows with other settings are left out.
    """
    columns = board.columns
    tasks: dict[str, list[str]] = {}
    for task, protocol in columns:
        tasks.setdefault(task, []).append(protocol)
    if not columns:
        return "% no run is finished yet"
    of_means = [(mean, averages(board, mean)) for mean in board.means]
    groups = [(task, len(protocols)) for task, protocols in tasks.items()]
    groups += [(f"mean {mean.over}", len(AVERAGED)) for mean, _ in of_means]
    heads = " & ".join(f"\\multicolumn{{{width}}}{{c}}{{{latex(name)}}}" for name, width in groups)
    names = " & ".join([latex(protocol) for _, protocol in columns] + [*AVERAGED] * len(of_means))
    left_out = [f"% {one_line(mean.note)}" for mean in board.means if mean.left_out]
    lines = [
        "% \\usepackage{booktabs}; bold: better than all, underlined: than all but that; *: not shown lower",
        "% norm.: mean of (score - guess) / (1 - guess); rank: mean rank among the complete rows",
        "% dagger: not all operations counted; ddagger: unreadable test images skipped; S: may be a guess",
        *left_out,
        f"\\begin{{tabular}}{{llrr{'r' * sum(width for _, width in groups)}}}",
        "\\toprule",
        f" & & & & {heads} \\\\",
        f"Model & Weights & Params (M) & FLOPs (G) & {names} \\\\",
        "\\midrule",
    ]
    for place, row in enumerate(board.rows):
        if row.settings:
            continue
        cost = row.cost(costs)
        numbers = [amount(cost.params_m), amount(cost.gmacs)] if cost else ["--", "--"]
        numbers[1] += DAGGER if cost and cost.uncounted else ""
        weights = f"{row.weights}, {row.variant}" if row.variant else row.weights
        cells = [_cell(board, place, column, marks) for column in columns]
        cells += [text for _, of_rows in of_means for text in _averaged(of_rows[place])]
        # an empty group, since a name that begins with [ or * would be read as an argument
        lines.append(" & ".join(["{}" + latex(row.model), latex(weights), *numbers, *cells]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def _averaged(average: Average) -> list[str]:
    """Return the cells of an average, empty where a row lacks a task."""
    shares = ["--" if each is None else f"{100 * each:.1f}" for each in (average.value, average.normalised)]
    return [*shares, "--" if average.rank is None else f"{average.rank:.2f}"]


def _cell(board: Leaderboard, place: int, column: Column, marks: Mapping[Column, Marks]) -> str:
    cell = board.rows[place].cells.get(column)
    if cell is None:
        return "--"
    text = f"{100 * cell.value:.1f}"
    mark = marks[column].of_row.get(place, "") if column in marks else ""
    marked = {BEST: f"\\textbf{{{text}}}", SECOND: f"\\underline{{{text}}}", TIED: f"{text}*"}.get(mark, text)
    return marked + (SKIPPED if cell.skipped else "") + (GUESS if cell.is_a_guess() else "")
