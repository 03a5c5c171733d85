"""Published weights: which of them are on this machine, and fetching those that are not. Imports no torch."""
