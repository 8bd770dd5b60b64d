"""What loading, training and sampling cost."""
