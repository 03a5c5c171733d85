"""From names to results: task files, resolving, planning, running, records."""
