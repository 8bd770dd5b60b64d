"""Where the sample photographs lie that some tests look at; they are not part of the project."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "samples"
SAMPLES = Path(os.environ.get("OMFA_SAMPLES", _BESIDE))


def sample(name: str) -> Path:
    """A file or folder of the samples; the test that asks for a missing one is skipped."""
    if not (SAMPLES / name).exists():
        pytest.skip(f"sample photographs are missing: {SAMPLES / name} (set OMFA_SAMPLES)")
    return SAMPLES / name
