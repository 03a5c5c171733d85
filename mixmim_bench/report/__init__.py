"""Tables, plots and comparisons, generated from the records."""
