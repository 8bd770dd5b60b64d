"""Pictures as phones, cameras and attackers make them: colours, sizes, kinds of file, what they cost."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from omfa import images
from omfa.images import ImageError
from omfa.records.labels import ATR, CIHP, DEEPFASHION, LIP, PALETTES, read_labels
from omfa.records.shards import RecordFolder
from tests.test_images import as_bytes, bomb, noise

HERE = Path(__file__).parents[1] / "fixtures" / "faults"
TRUE = [(220, 30, 30), (20, 160, 60), (30, 60, 200), (0, 150, 160), (230, 120, 0)]
WIDE = Image.open(HERE / "wide_gamut_colours.png").info["icc_profile"]
P3 = Image.open(HERE / "p3_colours.png").info["icc_profile"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("name", ["wide_gamut_colours", "p3_colours"])
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff", "rgba", "palette", "array of a record"])
def test_colours_are_those_of_the_profile(name: str, kind: str) -> None:
    raw = Image.open(HERE / f"{name}.png")
    profile = raw.info["icc_profile"]
    if kind == "array of a record":
        seen = Image.fromarray(images.decode_pixels((HERE / f"{name}.png").read_bytes(), name))
    elif kind in ("rgba", "palette"):
        image = raw.convert("RGBA") if kind == "rgba" else raw.convert("RGB").quantize(8)
        seen = images.decode(as_bytes(image, "PNG", icc_profile=profile))
    else:
        how = {"jpeg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}.get(kind, {})
        seen = images.decode(as_bytes(raw.convert("RGB"), kind.upper(), icc_profile=profile, **how))
    got = [seen.getpixel((5 + 40 * i, 5)) for i in range(5)]
    most = 9 if kind == "jpeg" else 4  # JPEG rounds before the profile spreads
    assert np.abs(np.array(got) - np.array(TRUE)).max() <= most, got


@pytest.mark.parametrize("profile", [None, SRGB, b"", b"\0" * 200, WIDE[:100], WIDE[:-8], b"x" * 5000])
def test_pictures_without_a_profile_or_with_srgbs_or_a_damaged_one_stay_as_they_are(profile: bytes | None) -> None:
    pixels = noise()
    data = as_bytes(Image.fromarray(pixels), "PNG", **({} if profile is None else {"icc_profile": profile}))
    read = np.asarray(images.decode(data)).astype(int)
    assert profile == WIDE[:-8] or np.abs(read - pixels).max() == 0


def test_a_grey_profile_on_colours_and_colours_on_grey_do_no_harm() -> None:
    grey = Image.fromarray(noise()).convert("L")
    read = images.decode(as_bytes(grey, "PNG", icc_profile=P3))
    assert (np.asarray(read) == np.asarray(grey.convert("RGB"))).all()


def oversized() -> bytes:
    """As many pixels as are allowed, and a few bytes: 9,999 x 9,999."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), b"\0" * (9_999 * 3 + 1)
    packed = b"".join(packer.compress(rows) for _ in range(9_999)) + packer.flush()
    header = struct.pack(">IIBBBBB", 9_999, 9_999, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(30_000, 30_000), (10_001, 10_000), (60_000, 2_000), (2**31 - 1, 2), (4, 40)])
def test_bombs_among_records_are_refused_by_their_headers(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"scale it down|too narrow|too small|pixels"):
        images.decode_trusted(bomb(*size), "bomb.png")


@pytest.mark.slow
def test_the_largest_picture_allowed_is_scaled_in_bytes() -> None:
    pixels = images.decode_pixels(oversized(), "large.png")
    tracemalloc.start()
    picture, _ = images.fit_pixels(pixels, (256, 192))
    peak = tracemalloc.get_traced_memory()[1]
    assert picture.shape == (3, 256, 192) and float(picture.max()) == -1 and peak < 2e8


@pytest.mark.parametrize(
    ("shape", "size"),
    [((1500, 1201), (256, 192)), ((1100, 1000), (1024, 768)), ((1025, 1024), (1024, 768)), ((2600, 500), (64, 48))],
)
@pytest.mark.parametrize("fill", ["edge", "white"])
def test_a_large_picture_is_scaled_as_a_small_one_is(
    shape: tuple[int, int], size: tuple[int, int], fill: images.Fill
) -> None:
    pixels = noise(*shape)
    pixels[: shape[0] // 2] //= 3
    want, want_box = images.fit(images.pixels_to_tensor(pixels), size, fill)
    got, box = images.fit_pixels(pixels, size, fill)
    assert box == want_box and float((got - want).abs().max()) * 127.5 < 0.1


def test_readers_open_regular_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png", "gone.png"):
        with pytest.raises(ImageError, match=r"regular|folder|no such"):
            images.read_image(tmp_path / name)
        with pytest.raises(ImageError, match="missing or damaged"):
            images.read_trusted(tmp_path / name)
    with pytest.raises(ValueError, match="regular"):
        RecordFolder(tmp_path).read("pipe.png")


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "a.AVIF", "AVIF")
    assert images.read_image(tmp_path / "a.AVIF").getpixel((5, 5))[0] > 190 and ".avif" in images.SUFFIXES
    pixels = images.decode_pixels((tmp_path / "a.AVIF").read_bytes(), "a")
    assert pixels.shape == (30, 40, 3)


def test_heic_is_read_or_named() -> None:
    data = b"\0\0\0\x18ftypheic" + b"\0" * 60
    with pytest.raises(ImageError, match=r"pillow-heif|damaged"):
        images.decode(data, "photo.heic")


def test_transparency_stays_over_white() -> None:
    rgba = Image.fromarray(np.dstack([noise(), noise(seed=1)[..., 0]]), "RGBA")
    white = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    out = io.BytesIO()
    rgba.save(out, "PNG")
    assert (np.asarray(images.decode(out.getvalue())) == np.asarray(white)).all()


@pytest.mark.parametrize(("names", "number"), [(n, k) for n in (CIHP, LIP, ATR) for k in range(len(PALETTES[n]))])
def test_label_maps_in_published_colours_are_read(tmp_path: Path, names: tuple[str, ...], number: int) -> None:
    palette = PALETTES[names][number]
    ids = np.random.default_rng(0).integers(0, len(names), (40, 30), np.uint8)
    ids.flat[: len(names)] = np.arange(len(names))
    for off in (0, 1):  # some releases have 254 for 255
        colours = palette[ids] - (off * (palette[ids] == 255)).astype(np.uint8)
        Image.fromarray(colours).save(tmp_path / "a.png")
        assert (read_labels(tmp_path / "a.png", names) == ids).all()
    with pytest.raises(ValueError, match="mode RGB"):
        read_labels(tmp_path / "a.png")


def test_label_maps_in_other_colours_are_refused_by_name(tmp_path: Path) -> None:
    for colour, words in (((9, 200, 77), r"\(9, 200, 77\).*no published"), ((0, 128, 0), "two palettes")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match=words):
            read_labels(tmp_path / "a.png", LIP)
    with pytest.raises(ValueError, match="no published"):
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        read_labels(tmp_path / "a.png", DEEPFASHION)
