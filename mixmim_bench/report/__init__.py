"""Tables, plots and the published results of others, regenerated from the records alone."""
