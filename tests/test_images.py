"""Pictures: what is refused at the door, orientation and modes, fitting and ranges."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from omfa import images
from omfa.images import ImageError


def noise(h: int = 40, w: int = 30, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def as_bytes(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bomb(width: int = 30000, height: int = 30000) -> bytes:
    """A PNG whose header promises far more pixels than its data holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


HOSTILE = {
    "empty": (b"", "empty"),
    "text": (b"hello, I am a jpeg", "not a picture"),
    "truncated": (as_bytes(Image.fromarray(noise(400, 300)), "JPEG")[:2000], "cut short"),
    "tiny": (as_bytes(Image.new("RGB", (1, 1))), "too small"),
    "narrow": (as_bytes(Image.new("RGB", (3000, 10))), "too narrow"),
    "bomb": (bomb(), "scale it down|over 100"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins", "not a picture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_named_with_a_cure(tmp_path: Path, name: str) -> None:
    data, words = HOSTILE[name]
    path = tmp_path / f"{name}.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=words) as error:
        images.read_image(path)
    assert f"{name}.jpg" in str(error.value) and "\n" not in str(error.value)


def test_missing_folder_and_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, words in ((tmp_path / "no.png", "no such file"), (tmp_path, "folder"), (tmp_path / "fifo", "regular")):
        with pytest.raises(ImageError, match=words):
            images.read_image(path)
    with pytest.raises(ImageError, match="can't be read"):
        images.read_image("a\0b.png")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (10, 10), 77), 77),
        (Image.fromarray(np.full((10, 10), 77 * 257, np.uint16)), 77),
        (Image.new("RGBA", (10, 10), (77, 77, 77, 0)), 255),
        (Image.new("LA", (10, 10), (77, 255)), 77),
        (Image.new("1", (10, 10), 1), 255),
        (Image.new("P", (10, 10), 0), 0),
        (Image.new("F", (10, 10), 77 / 255), 77),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: int) -> None:
    out = images.read_image(image)
    assert out.mode == "RGB" and (np.asarray(out) == expected).all()


@pytest.mark.parametrize("value", [77.0, -1.0, float("nan")])
def test_floats_out_of_range_are_refused(value: float) -> None:
    with pytest.raises(ImageError, match=r"floats in \[0, 1\]|finite values"):
        images.read_image(Image.new("F", (10, 10), value))
    with pytest.raises(ImageError, match="8 or 16 bits"):
        images.read_image(Image.new("I", (10, 10), 70_000))


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"\xff" * 200)
    read = images.read_image(tmp_path / "a.jpg")
    assert images.read_image(read).size == (20, 10) and not read.info
    assert images.read_image(Image.open(tmp_path / "a.jpg")).size == (20, 10)


def test_damaged_pil_pictures_are_refused_as_files_are(tmp_path: Path) -> None:
    data = as_bytes(Image.fromarray(noise(60, 60)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match="photo: damaged or cut short"):
        images.read_image(Image.open(tmp_path / "cut.jpg"), "photo")


def test_cmyk_jpeg_and_exif_turn(tmp_path: Path) -> None:
    Image.new("CMYK", (20, 10), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = np.asarray(images.read_image(tmp_path / "cmyk.jpg")).astype(int)
    assert (red[..., 0] > 200).all() and (red[..., 1:] < 60).all()
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.read_image(tmp_path / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((10, 10, 3), np.nan, np.float32), "NaN"),
        (np.full((10, 10, 3), 2.0, np.float32), "from 2 to 2"),
        (np.zeros((10, 10, 5), np.uint8), "shape"),
        (np.zeros((10,), np.uint8), "shape"),
        (np.zeros((10, 10, 3), np.int64), "int64"),
        (np.zeros((4, 10, 3), np.uint8), "too small"),
        (np.zeros((0, 10, 3), np.uint8), "too small"),
        (torch.zeros(5, 10, 10), "shape"),
        (object(), "no picture"),
    ],
)
def test_wrong_arrays_are_refused(array: object, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        images.read_image(array)  # type: ignore[arg-type]


def test_tensors_in_either_range_are_the_same_picture() -> None:
    pixels = noise()
    unit = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    for tensor in (unit, unit * 2 - 1):
        assert (np.asarray(images.read_image(tensor)) == pixels).all()


def test_pixels_to_tensor_and_back_is_exact() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = images.pixels_to_tensor(pixels)
    assert tensor.min() == -1 and tensor.max() == 1
    assert (images.tensor_to_pixels(tensor) == pixels).all()


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (10, 100), (200, 30), (64, 47)])
@pytest.mark.parametrize("fill", ["edge", "white"])
def test_fit_keeps_aspect_centres_and_pads(size: tuple[int, int], fill: images.Fill) -> None:
    picture = torch.full((3, *size), -0.5)
    fitted, box = images.fit(picture, (64, 48), fill)
    assert fitted.shape == (3, 64, 48)
    assert abs(box.height / box.width - size[0] / size[1]) / (size[0] / size[1]) < 0.25
    assert abs((64 - box.height) - 2 * box.top) <= 1 and abs((48 - box.width) - 2 * box.left) <= 1
    outside = torch.ones(64, 48, dtype=torch.bool)
    outside[box.window] = False
    assert torch.allclose(fitted[:, ~outside], torch.tensor(-0.5), atol=1e-6)
    assert torch.allclose(fitted[:, outside], torch.tensor(-0.5 if fill == "edge" else 1.0), atol=1e-6)


def test_fit_leaves_a_picture_of_the_right_size_alone() -> None:
    picture = torch.randn(3, 64, 48)
    assert torch.equal(images.fit(picture, (64, 48))[0], picture)


def test_trusted_and_untrusted_readers_agree_on_png(tmp_path: Path) -> None:
    Image.fromarray(noise()).save(tmp_path / "a.png")
    trusted = images.tensor_to_pixels(images.read_trusted(tmp_path / "a.png"))
    assert (trusted == np.asarray(images.read_image(tmp_path / "a.png"))).all()
    with pytest.raises(ImageError, match="missing or damaged"):
        images.read_trusted(tmp_path / "b.png")


def test_mutated_files_never_crash() -> None:
    """Bytes flipped, cut and doubled at random: a picture or an ImageError, nothing else."""
    rng = np.random.default_rng(1)
    seeds = [as_bytes(Image.fromarray(noise(24, 20)), kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")]
    for _ in range(int(os.environ.get("OMFA_FUZZ", "300"))):
        data = bytearray(seeds[rng.integers(len(seeds))])
        for _ in range(rng.integers(1, 8)):
            data[rng.integers(len(data))] = rng.integers(256)
        if rng.random() < 0.3:
            data = data[: rng.integers(len(data))]
        try:
            assert images.read_image(images.decode(bytes(data))).mode == "RGB"
        except ImageError as e:
            assert "\n" not in str(e)


def test_suffixes_are_those_of_the_formats(tmp_path: Path) -> None:
    of = {suffix for suffix, kind in Image.registered_extensions().items() if kind in images.FORMATS}
    assert set(images.SUFFIXES) == of
    for suffix in (".gif", ".ppm", ".pgm"):
        Image.fromarray(noise()).convert("L" if suffix == ".pgm" else "RGB").save(tmp_path / f"a{suffix}")
        assert images.read_image(tmp_path / f"a{suffix}").size == (30, 40)
