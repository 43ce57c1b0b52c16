"""From a recipe to a trained embedder: the schedule, a stage, the objective, and the run that joins them."""
