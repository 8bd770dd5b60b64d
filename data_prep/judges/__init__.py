"""Training of the small networks that judge pictures."""
