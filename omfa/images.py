"""Pictures in and out: safe decoding, orientation, fitting to a size and back, value ranges.

Everything that comes from a user passes through :func:`read_image`. ``H W`` pixels. Tensors are RGB float32 in [-1, 1].
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import kornia
import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageOps, UnidentifiedImageError, features
from torch import Tensor

from omfa import files
from omfa.colours import in_srgb, profile_of, to_srgb

Picture = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""What the API takes for a picture: a path, a PIL image, an array (H, W, 3) or a tensor (3, H, W)."""
Fill = Literal["edge", "white"]
OutputType = Literal["pil", "np", "pt", "latent"]

MAX_PIXELS = 100_000_000
MAX_ASPECT = 20
MIN_SIDE = 8
MAX_BYTES = files.MAX_BYTES
ORIENTATION = 0x0112  # in EXIF
LARGE = 2**20  # pixels; from here on a picture is scaled down before it becomes floats
ENOUGH = 2048  # pixels of a side: twice what is made of any photo here
TIMES = "times smaller"


def _formats() -> tuple[str, ...]:
    """What this Pillow reads of what photos come in."""
    found = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"]
    if features.check("avif"):
        found.append("AVIF")
    with suppress(ImportError):  # phones' HEIC
        import pillow_heif

        pillow_heif.register_heif_opener()
        found.append("HEIF")
    return tuple(found)


FORMATS = _formats()
Image.init()
SUFFIXES = tuple(sorted(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS))
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


class ImageError(ValueError):
    """A picture that can't be used; the message names it, what was found and what would work."""


@dataclass(frozen=True)
class _Smaller:
    """In the ``info`` of a picture of ``size``: its file holds one ``times`` as wide and high."""

    times: int
    size: tuple[int, int]


def times_smaller(picture: Image.Image) -> int:
    """How many times the width of a picture its file has; 1 for whatever was made of it since."""
    note = picture.info.get(TIMES)
    return note.times if isinstance(note, _Smaller) and note.size == picture.size else 1


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"{name}: {width}x{height} pixels is too small; give a picture of at least {MIN_SIDE} on a side"
        )
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name}: {width}x{height} is over {MAX_PIXELS // 10**6} megapixels; scale it down first")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"{name}: {width}x{height} is too narrow (over {MAX_ASPECT}:1); crop it first")


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Upright 8-bit RGB from any mode, and nothing but pixels: 16-bit scaled, transparency over white."""
    image.load()
    profile = profile_of(image)
    with suppress(Exception):  # orientation in damaged EXIF: the picture can still be read
        if image.getexif().get(ORIENTATION, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ImageError(f"{name}: whole numbers from {deep.min()} to {deep.max()}; save it with 8 or 16 bits")
        rgb = in_srgb(Image.fromarray((deep >> 8).astype(np.uint8)), profile)
    elif image.mode == "F":
        rgb = _from_array(np.asarray(image), name)
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        grey = image.mode in ("LA", "La")
        clear = image.convert("LA" if grey else "RGBA")
        rgb = in_srgb(clear.convert("L" if grey else "RGB"), profile)
        rgb.putalpha(clear.getchannel("A"))
        rgb = Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")
    else:
        rgb = in_srgb(image if image.mode in ("L", "CMYK", "RGB") else image.convert("RGB"), profile)
    rgb.info = {}
    return rgb


def is_plain(image: Image.Image) -> bool:
    """Whether every decoder reads an opened picture alike: upright opaque 8-bit RGB or grey, its colours sRGB's."""
    profile = profile_of(image)
    return (
        image.format in ("JPEG", "PNG")
        and image.mode in ("RGB", "L")
        and "transparency" not in image.info
        and image.getexif().get(ORIENTATION, 1) == 1
        and (profile is None or to_srgb(profile, image.mode) is None)
    )


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Whatever a decoder raises, as an :class:`ImageError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an unreadable tag in a picture that can be read
            yield
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture this can read; give one of {', '.join(FORMATS)}") from None
    except (Image.DecompressionBombError, MemoryError) as e:
        raise ImageError(f"{name}: too large for memory ({e}); scale it down first") from None
    except Exception as e:  # decoders raise almost anything on damaged files
        raise ImageError(f"{name}: damaged or cut short ({type(e).__name__}: {e}); save it again") from None


def decode(data: bytes, name: str = "picture", enough: int | None = None) -> Image.Image:
    """Decode an image file held in memory. Size and kind are checked in the header, before any pixel is decoded.

    Args:
        data: of the file.
        name: for messages.
        enough: pixels of either side that will do: where there are more, the means of 2x2 of them or more are handed
            back, which spares most of the work. :func:`fit_picture` makes the same of them to two levels, but for noise
            and sharp edges of colours that sRGB does not have.

    Returns:
        An upright 8-bit RGB picture.

    Raises:
        ImageError: not one of ``FORMATS``, truncated or damaged, too small, too large or too narrow.
    """
    with opened(data, name) as image:
        times = 1 if enough is None else min(image.size) // enough
        if times < 2 or image.format not in ("JPEG", "MPO", "PNG", "WEBP") or image.mode not in ("L", "RGB", "CMYK"):
            return _to_rgb(image, name)
        rgb = _to_rgb(image.reduce(times), name)  # before its colours are changed, which takes the longest
        rgb.info[TIMES] = _Smaller(times, rgb.size)
        return rgb


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """An image file held in memory, its header in order, nothing of it decoded yet; errors as of :func:`decode`."""
    if not data:
        raise ImageError(f"{name}: the file is empty; give a JPEG or PNG picture")
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in FORMATS:
        raise ImageError(f"{name}: a HEIC picture, which needs pip install pillow-heif; or save it as JPEG")
    with _refusing(name):
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size, name)
        yield image


def read_file(path: Path) -> bytes:
    """The bytes of a picture file.

    Raises:
        ImageError: missing, no regular file (a pipe, a device, a folder), or too large.
    """
    try:
        return files.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise ImageError(f"{path}: is a folder; give a picture file") from None
    except (OSError, ValueError) as e:
        raise ImageError(f"{path}: can't be read ({getattr(e, 'strerror', None) or e})") from None


def read_image(source: Picture, name: str = "picture", enough: int | None = None) -> Image.Image:
    """One picture from a path, a PIL image, an array or a tensor: upright, 8-bit RGB.

    Args:
        source: path; PIL image; array (H, W), (H, W, 3) or (H, W, 4), uint8 or float in [0, 1]; tensor (3, H, W), uint8
            or float in [0, 1] or, if any value is negative, in [-1, 1].
        name: what the picture is, for messages ("person", "garment upper").
        enough: of a file, as in :func:`decode`.

    Raises:
        ImageError: missing, unreadable, damaged, of a wrong shape or range, with NaN, or of an extreme size.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return decode(read_file(path), str(path), enough)
    if isinstance(source, Image.Image):
        with _refusing(name):
            _check_size(*source.size, name)
            rgb = _to_rgb(source.copy(), name)  # what is made of it is another picture
            if times_smaller(source) > 1:
                rgb.info[TIMES] = source.info[TIMES]
            return rgb
    if isinstance(source, Tensor):
        array = source.detach().float().cpu() if source.is_floating_point() else source.cpu()
        if array.ndim == 4 and array.shape[0] == 1:
            array = array[0]
        if array.ndim != 3 or array.shape[0] not in (1, 3):
            raise ImageError(f"{name}: a tensor of shape {tuple(source.shape)}; give (3, H, W)")
        if array.is_floating_point() and bool((array < 0).any()):
            array = array / 2 + 0.5
        return _from_array(rearrange(array, "c h w -> h w c").numpy(), name)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    raise ImageError(f"{name}: {type(source).__name__} is no picture; give a path, a PIL image, an array or a tensor")


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ImageError(f"{name}: an array of shape {array.shape}; give (H, W, 3)")
    if array.dtype.kind == "f":
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: holds NaN or infinity; give finite values in [0, 1]")
        if array.size and (array.min() < -1e-3 or array.max() > 1 + 1e-3):
            raise ImageError(
                f"{name}: values from {array.min():.3g} to {array.max():.3g}; give floats in [0, 1] or uint8"
            )
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype != np.uint8:
        raise ImageError(f"{name}: an array of {array.dtype}; give uint8, or floats in [0, 1]")
    _check_size(array.shape[1], array.shape[0], name)
    return _to_rgb(Image.fromarray(array), name)


def decode_pixels(data: bytes, name: str) -> np.ndarray:
    """A prepared picture of a record, decoded fast where it is plain: (H, W, 3) uint8.

    Raises:
        ImageError: the file can't be decoded, or its header says that it should not be; as of :func:`decode`.
    """
    with _of_a_record(name), opened(data, name) as image:
        if not is_plain(image):
            return np.asarray(_to_rgb(image, name))
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except (cv2.error, MemoryError):
        pixels = None
    if pixels is None:
        raise ImageError(f"{name}: missing or damaged; prepare the record again")
    return pixels


def decode_trusted(data: bytes, name: str) -> Tensor:
    """:func:`decode_pixels` as a tensor: (3, H, W) in [-1, 1]."""
    return pixels_to_tensor(decode_pixels(data, name))


def read_trusted(path: Path) -> Tensor:
    """:func:`decode_trusted` of a file."""
    with _of_a_record(str(path)):
        data = read_file(path)
    return decode_trusted(data, str(path))


@contextmanager
def _of_a_record(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError as e:
        why = str(e).removeprefix(f"{name}: ")
        raise ImageError(f"{name}: missing or damaged ({why}); prepare the record again") from None


def pixels_to_tensor(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1]. Undone by :func:`tensor_to_pixels`."""
    return rearrange(torch.from_numpy(np.array(pixels)), "h w c -> c h w").float() / 127.5 - 1


def tensor_to_pixels(tensor: Tensor) -> np.ndarray:
    """(3, H, W) or (B, 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8. Undoes :func:`pixels_to_tensor` exactly.

    Raises:
        ImageError: NaN or infinity, of which any pixel made would be a lie.
    """
    if not tensor.isfinite().all():
        raise ImageError("the model made NaN or infinity instead of a picture: its weights, or its precision, are bad")
    pixels = ((tensor.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    return rearrange(pixels, "... c h w -> ... h w c").numpy()


@dataclass(frozen=True)
class Box:
    """Where a fitted picture lies inside the padded one, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture without its padding."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def fit(picture: Tensor, size: Sequence[int], fill: Fill = "edge") -> tuple[Tensor, Box]:
    """Scale a picture to fit ``size``, pad it and centre it.

    Args:
        picture: (3, H, W) in [-1, 1].
        size: (height, width) to fill.
        fill: ``edge`` repeats the border pixels (persons, poses, faces), ``white`` pads with white (garments).

    Returns:
        The picture (3, *size) and the box it covers.
    """
    height, width = picture.shape[-2:]
    box = fitted_box((height, width), size)
    inner = box.height, box.width
    if inner != (height, width):
        smaller = min(size[0] / height, size[1] / width) < 1
        picture = kornia.geometry.resize(picture[None], inner, interpolation="bilinear", antialias=smaller)[0]
    return _padded(picture, box, size, fill), box


def _padded(picture: Tensor, box: Box, size: Sequence[int], fill: Fill) -> Tensor:
    bottom, right = size[0] - box.top - box.height, size[1] - box.left - box.width
    if fill == "white":
        return torch.nn.functional.pad(picture, (box.left, right, box.top, bottom), value=1.0)
    return torch.nn.functional.pad(picture[None], (box.left, right, box.top, bottom), mode="replicate")[0]


def fit_pixels(pixels: np.ndarray, size: Sequence[int], fill: Fill = "edge", times: int = 1) -> tuple[Tensor, Box]:
    """:func:`fit` of (H, W, 3) uint8: the same picture, without ever holding a large one as floats.

    ``times``: what it is fitted from is (times H, times W, 3), of which ``pixels`` are means.
    """
    height, width = pixels.shape[:2]
    box = fitted_box((height, width), size)
    if height * width * times**2 < LARGE or box.height >= height or box.width >= width:
        return fit(pixels_to_tensor(pixels), size, fill)
    flat = pixels.reshape(height, -1)
    rows = np.stack(
        [w @ flat[at : at + len(w)].astype(np.float32) for at, w in _blurred_taps(height, box.height, times)]
    )
    rows = rows.reshape(box.height, width, 3)
    columns = [np.tensordot(w, rows[:, at : at + len(w)], (0, 1)) for at, w in _blurred_taps(width, box.width, times)]
    picture = rearrange(torch.from_numpy(np.stack(columns)), "w h c -> c h w") / 127.5 - 1
    return _padded(picture.contiguous(), box, size, fill), box


def _blurred_taps(many: int, few: int, times: int) -> Iterator[tuple[int, np.ndarray]]:
    """For each of ``few`` pixels the first of ``many`` that it is a mean of, and the weights from there on.

    What kornia's ``resize(antialias=True)`` does along one axis: a Gaussian cut off at two sigmas, mirrored at the
    borders, then linear interpolation between pixels' centres. ``times``: of so many pixels only the mean is at hand.
    """
    many *= times
    sigma = max((many / few - 1) / 2, 0.001)
    sigma = max(sigma**2 - (times**2 - 1) / 6, 1e-6) ** 0.5  # a mean is a blur, too
    reach = int(max(4 * sigma, 3)) // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    for i in range(few):
        place = max((i + 0.5) * many / few - 0.5, 0.0)
        first = min(int(place), many - 1)
        second, share = min(first + 1, many - 1), place - first
        at = np.arange(first - reach, second + reach + 1)
        weights = np.zeros(len(at))
        weights[: 2 * reach + 1] += (1 - share) * kernel
        weights[second - first : second - first + 2 * reach + 1] += share * kernel
        at = np.abs(at)
        at = np.where(at >= many, 2 * (many - 1) - at, at) // times
        low = int(at.min())
        folded = np.zeros(int(at.max()) - low + 1)
        np.add.at(folded, at - low, weights)
        yield low, folded.astype(np.float32)


def fitted_box(inner: Sequence[int], size: Sequence[int]) -> Box:
    """Where :func:`fit` lays a picture of (height, width) inside one of another size."""
    height, width = inner
    scale = min(size[0] / height, size[1] / width)
    tall, wide = (min(size[0], max(1, round(height * scale))), min(size[1], max(1, round(width * scale))))
    return Box((size[0] - tall) // 2, (size[1] - wide) // 2, tall, wide)


def enlarged(pictures: Tensor, size: Sequence[int]) -> Tensor:
    """(B, 3, h, w) to (B, 3, *size), smoothly."""
    return torch.nn.functional.interpolate(pictures, tuple(size), mode="bicubic", align_corners=False).clamp(-1, 1)


def fit_picture(picture: Image.Image, size: Sequence[int], fill: Fill = "edge") -> tuple[Tensor, Box]:
    """:func:`fit` of what :func:`read_image` gave."""
    return fit_pixels(np.asarray(picture), size, fill, times_smaller(picture))


def load(source: Picture, size: Sequence[int], fill: Fill = "edge", name: str = "picture") -> tuple[Tensor, Box]:
    """:func:`read_image`, then :func:`fit`: (3, *size) in [-1, 1] and its box."""
    return fit_picture(read_image(source, name, max(ENOUGH, *size)), size, fill)


def as_list(pictures: Picture | Sequence[Picture] | None) -> list[Any]:
    """One picture or several as a list; a batch array or tensor (4 axes) becomes its pictures; None becomes []."""
    if pictures is None:
        return []
    if isinstance(pictures, list | tuple):
        return list(pictures)
    if isinstance(pictures, np.ndarray | Tensor) and pictures.ndim == 4:
        return list(pictures)
    return [pictures]


def as_output(pictures: list[Image.Image], output_type: OutputType) -> Any:
    """Pictures (PIL, "pil") in the form the caller asked for; arrays and tensors are stacked where sizes agree."""
    if output_type == "pil":
        return pictures
    arrays = [np.asarray(p).astype(np.float32) / 255 for p in pictures]
    alike = len({a.shape for a in arrays}) == 1
    if output_type == "np":
        return np.stack(arrays) if alike else arrays
    tensors = [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    return torch.stack(tensors) if alike else tensors
