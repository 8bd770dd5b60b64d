"""Colours that a picture's profile gives it, as sRGB: phones and cameras save in wider ones."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

ADOBE_RGB = "R03"  # in EXIF, of cameras that embed no profile (DCF 2.0)
_EXIF_INTEROP = 0xA005


def profile_of(image: Image.Image) -> bytes | None:
    """The profile of an opened picture: the embedded one, or Adobe RGB's where its EXIF names that; else None."""
    embedded = image.info.get("icc_profile")
    if isinstance(embedded, bytes) and embedded:
        return embedded
    with suppress(Exception):  # damaged EXIF: the picture can still be read
        if str(image.getexif().get_ifd(_EXIF_INTEROP).get(1, "")).rstrip("\0 ") == ADOBE_RGB:
            return adobe_rgb()
    return None


@lru_cache(maxsize=1)
def adobe_rgb() -> bytes:
    """An ICC profile (version 2) of Adobe RGB (1998): its primaries adapted to D50, its gamma 563/256."""

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

    gamma = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 563)
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"rTRC": gamma, b"gTRC": gamma, b"bTRC": gamma}
    tags[b"rXYZ"] = xyz(0.60974, 0.31111, 0.01947)
    tags[b"gXYZ"] = xyz(0.20528, 0.62567, 0.06087)
    tags[b"bXYZ"] = xyz(0.14919, 0.06322, 0.74457)
    at, table = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags))
    for name, data in tags.items():
        table += name + struct.pack(">II", at, len(data))
        at += len(data)
    head = struct.pack(">I4sI4s4s4s12x4s28x3i48x", at, b"lcms", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp",
                       *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))  # fmt: skip
    return head + table + b"".join(tags.values())


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
