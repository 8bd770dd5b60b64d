"""Models as graphs for a runtime that needs no torch; :mod:`omfa.device` runs them."""
