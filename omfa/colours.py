"""Colours that a picture's profile gives it, as sRGB: phones and cameras save in wider ones."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms


def in_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """RGB of a picture (L, CMYK or RGB) in the colours that its profile gives it; one that can't be read counts not."""
    change = to_srgb(profile, image.mode) if isinstance(profile, bytes) else None
    if change is not None:
        with suppress(ImageCms.PyCMSError, ValueError, OSError):
            made = ImageCms.applyTransform(image, change)
            assert made is not None
            return made
    return image if image.mode == "RGB" else image.convert("RGB")


@lru_cache(maxsize=64)
def to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None where it is sRGB (to two levels), is damaged, or is of other colours than these."""
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        way = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
        change = ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB", *way)
        if mode == "CMYK":
            return change
        levels = np.arange(0, 256, 17, dtype=np.uint8)
        axes = np.meshgrid(levels, levels, levels) if mode == "RGB" else np.meshgrid(levels, levels)[:1]
        probe = Image.fromarray(np.stack([a.reshape(16, -1) for a in axes], axis=-1).squeeze())
        seen = ImageCms.applyTransform(probe, change)
        assert seen is not None
        differ = np.abs(np.asarray(seen).astype(int) - np.asarray(probe.convert("RGB")))
        return change if differ.max() > 2 else None
    except (ImageCms.PyCMSError, ValueError, OSError, TypeError):
        return None
