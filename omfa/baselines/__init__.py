"""Published try-on and try-off systems beside OMFA, each in a folder of its own; none knows another."""
