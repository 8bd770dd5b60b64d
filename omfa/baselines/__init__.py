"""Published systems beside OMFA, each a folder of its own: networks, pipeline, training. None knows another."""
