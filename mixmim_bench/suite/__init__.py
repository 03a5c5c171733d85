"""From names to results: task files, resolving, planning, doing the runs, keeping the records."""
