"""OMFA: one partial-diffusion model for virtual try-on and try-off, without masks, in any pose."""

__version__ = "0.1.0"
