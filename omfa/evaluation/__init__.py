"""One evaluator for every try-on and try-off model."""
