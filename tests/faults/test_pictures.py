"""Pictures as phones, cameras and attackers make them: colours, sizes, kinds of file, what they cost."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, features

from omfa import images
from omfa.images import ImageError
from omfa.records.labels import LIP, PALETTES, SCHEMES, read_labels
from omfa.records.shards import RecordFolder
from tests.test_images import as_bytes, bomb, noise

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "fixtures" / "faults"
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


def exif(**fields: str | int) -> bytes:
    """EXIF with a colour space and an interoperability index, as cameras write them, and perhaps an orientation."""
    made = Image.Exif()
    inner = made.get_ifd(0x8769)
    inner[0xA001], inner[0xA005] = fields.get("space", 1), {1: fields.get("index", "R98")}
    made[images.ORIENTATION] = fields.get("turn", 1)
    return made.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_adobe_rgb_that_only_exif_tells_of(kind: str) -> None:
    raw = Image.open(HERE / "wide_gamut_colours.png").convert("RGB")
    raw.info = {}
    how: dict[str, Any] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})

    def seen(**more: Any) -> np.ndarray:
        image = images.decode(as_bytes(raw, kind, **how, **more))
        return np.array([image.getpixel((5 + 40 * i, 5)) for i in range(5)]).astype(int)

    own = [raw.getpixel((5 + 40 * i, 5)) for i in range(5)]
    assert np.abs(seen(exif=exif(space=65535, index="R03")) - TRUE).max() <= 9
    for other in (
        exif(space=65535),
        exif(index="R98"),
        exif(space=65535, index="R0"),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
    ):
        assert np.abs(seen(exif=other) - own).max() <= 2
    p3 = seen(icc_profile=P3)
    assert (seen(exif=exif(space=65535, index="R03"), icc_profile=P3) == p3).all()


def phone_photo(times: int = 8) -> Image.Image:
    """Smooth colours, hard edges, noise: (400, 300) at 8."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(100, 170, (6, 5, 3), np.uint8)).resize((38 * times, 50 * times))
    pen = ImageDraw.Draw(image)
    pen.rectangle([10 * times, 20 * times, 25 * times, 45 * times], fill=(170, 90, 80))
    pen.ellipse([12 * times, 5 * times, 20 * times, 15 * times], fill=(240, 240, 235))
    noisy = np.asarray(image).astype(int) + rng.integers(-6, 7, (50 * times, 38 * times, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "MPO"])
@pytest.mark.parametrize("profile", [None, P3, WIDE])
def test_what_is_read_smaller_is_the_same_picture_to_two_levels(kind: str, profile: bytes | None) -> None:
    data = as_bytes(phone_photo(40), kind, exif=exif(turn=6), **({"icc_profile": profile} if profile else {}))
    full, small = images.decode(data), images.decode(data, enough=700)
    assert full.size == (2000, 1520) and small.size == (1000, 760) and images.times_smaller(small) == 2
    again = images.read_image(small)
    for size in ((64, 48), (128, 96)):
        want = images.fit_pixels(np.asarray(full), size)[0]
        for picture in (small, again):
            assert float((images.fit_picture(picture, size)[0] - want).abs().max()) * 127.5 <= 2
    assert images.times_smaller(small.crop((0, 0, 900, 760))) == images.times_smaller(full) == 1
    assert images.decode(data, enough=800).size == full.size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak of memory is told here")
def test_48_megapixels_in_two_seconds_and_a_gigabyte(tmp_path: Path) -> None:
    phone_photo(160).resize((6048, 8064)).save(tmp_path / "a.jpg", quality=90, icc_profile=P3)
    code = "import sys, time; from omfa import images; t = time.process_time()\n"
    code += "images.load(sys.argv[1], (256, 192))\n"
    code += "peak = next(x for x in open('/proc/self/status') if x.startswith('VmHWM'))\n"  # rusage has the parent's
    code += "print(time.process_time() - t, int(peak.split()[1]) / 1e6)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.jpg")], capture_output=True, text=True, check=True, cwd=ROOT
    )
    seconds, gigabytes = map(float, done.stdout.split())
    print(f"{seconds:.2f} s, {gigabytes:.2f} GB")
    assert seconds < 2 and gigabytes < 1


def oversized() -> bytes:
    """As many pixels as are allowed, and a few bytes: 9,999 x 9,999."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(9), b"\0" * (9_999 * 3 + 1)
    packed = b"".join(packer.compress(rows) for _ in range(9_999)) + packer.flush()
    header = struct.pack(">IIBBBBB", 9_999, 9_999, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "size",
    [(30_000,) * 2, (10_001, 10_000), (60_000, 2_000), (2**31 - 1, 2), (4, 40), (2**31 - 1,) * 2, (0, 9), (210, 10)],
)
def test_bombs_among_records_are_refused_by_their_headers(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match=r"scale it down|too narrow|too small|pixels|not a picture"):
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


def hostile() -> dict[str, bytes]:
    """What stands in folders of photos beside photos."""
    whole = {kind: as_bytes(Image.fromarray(noise()), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")}
    jpeg = bytearray(whole["JPEG"])
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = b"\xff\xdc\xff\xdc"  # 65,500 x 65,500
    canvas = b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2 + b"VP8 \0\0\0\0"
    loop = b"II*\0\x08\0\0\0\0\0\x08\0\0\0"  # a directory of nothing that follows itself
    return {
        **{f"half a {kind}": data[: len(data) // 2] for kind, data in whole.items() if kind not in ("TIFF", "GIF")},
        **{f"the first bytes of a {kind}": data[:12] for kind, data in whole.items()},
        "a bomb of JPEG": bytes(jpeg),
        "a canvas of WebP": canvas,
        "a TIFF without end": loop,
        "a line of pixels": as_bytes(Image.new("RGB", (2000, 8)), "PNG"),
        "a pixel": as_bytes(Image.new("RGB", (1, 1)), "PNG"),
        "deep negatives": as_bytes(Image.new("I", (20, 20), -5), "TIFF"),
        "no numbers": as_bytes(Image.new("F", (20, 20), float("nan")), "TIFF"),
        "a page": b"<!DOCTYPE html><html>404",
        "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg' width='99' height='99'/>",
        "a document": b"%PDF-1.7\n1 0 obj",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n",
        "a film": b"\0\0\0\x20ftypisom" + bytes(40),
        "an archive": b"PK\x03\x04" + bytes(60),
        "a pickle": b"\x80\x04\x95" + bytes(60),
        "zeros": bytes(5000),
    }


@pytest.mark.parametrize("what", hostile())
def test_what_is_no_photo_is_a_line_with_its_name(tmp_path: Path, what: str) -> None:
    (tmp_path / "a.jpg").write_bytes(hostile()[what])
    for read in (images.read_image, images.read_trusted):
        with pytest.raises(ImageError, match=r"a\.jpg: ") as said:
            read(tmp_path / "a.jpg")
        assert "\n" not in str(said.value)


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


@pytest.mark.parametrize(("names", "number"), [(n, k) for n in SCHEMES.values() for k in range(len(PALETTES[n]))])
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
        read_labels(tmp_path / "a.png", ("background", "top"))
