"""OMFA: one partial-diffusion model for virtual try-on and try-off, without masks, in any pose."""

from omfa.commands import stop_quietly

__version__ = "0.1.0"

stop_quietly()
