"""Try-on where there is neither torch nor a GPU: numpy, pillow and onnxruntime run what ``omfa.export`` wrote.

    python -m omfa.export --model compact --runtime onnx --out FOLDER
    python -m omfa.device photo.jpg garment.jpg --model FOLDER --category upper --out made.png

This one file needs nothing else of the project: copied beside a folder, ``python device.py ...`` does the same. Same
seed, same picture as the pipeline that was exported: the noise is torch's.

``C`` latent channels, ``h w`` latents, ``H W`` pixels. Arrays are float32, pictures RGB (1, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray
CATEGORIES = ("upper", "lower", "dress")
LENGTH = 333  # tokens of a Mobile-VTON context without the picture's
NEEDED = {"rows": {"tokens", "alphas"}, "pair": {"no_tokens", "negative"}}  # arrays of each kind of model


# ------------------------------------------------------------------------------------------------------------- pictures
@dataclass(frozen=True)
class Box:
    """Where a fitted picture lies inside the padded one, in pixels."""

    top: int
    left: int
    height: int
    width: int


def read(path: str | Path) -> Array:
    """(H, W, 3) uint8 of a picture file: upright, transparency over white.

    Raises:
        ValueError: no picture that can be read.
    """
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if "A" in picture.getbands() or "transparency" in picture.info:
                clear = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as e:
        raise ValueError(f"{path}: no picture that can be read ({e})") from None


def fit(pixels: Array, size: Sequence[int], white: bool = False) -> tuple[Array, Box]:
    """Scale a picture (H, W, 3) uint8 to fit ``size``, centre it and pad it: with white, or with its border.

    Returns:
        (1, 3, *size) in [-1, 1], and where the picture lies in it.
    """
    height, width = pixels.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    tall, wide = (min(size[i], max(1, round(n * scale))) for i, n in enumerate((height, width)))
    box = Box((size[0] - tall) // 2, (size[1] - wide) // 2, tall, wide)
    small = pixels.astype(np.float32)
    if (tall, wide) != (height, width):
        small = np.einsum("yY,YXc->yXc", _taps(height, tall), small, optimize=True)
        small = np.einsum("xX,yXc->yxc", _taps(width, wide), small, optimize=True)
    small = np.moveaxis(small / 127.5 - 1, 2, 0).astype(np.float32)
    margins = ((0, 0), (box.top, size[0] - box.top - tall), (box.left, size[1] - box.left - wide))
    padded = np.pad(small, margins, constant_values=1) if white else np.pad(small, margins, mode="edge")
    return padded[None], box


def _taps(many: int, few: int) -> Array:
    """(few, many) weights of a resize along one axis: a Gaussian against aliasing, then linear interpolation."""
    sigma = max((many / few - 1) / 2, 0.001)
    reach = int(max(4 * sigma, 3)) // 2
    kernel = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    place = np.maximum((np.arange(few) + 0.5) * many / few - 0.5, 0)
    first = np.minimum(place.astype(int), many - 1)
    weights = np.zeros((few, many), np.float32)
    for at, share in ((first, 1 - (place - first)), (np.minimum(first + 1, many - 1), place - first)):
        for k, weight in enumerate(kernel):
            column = np.abs(at + k - reach)
            column = np.where(column >= many, 2 * (many - 1) - column, column)
            np.add.at(weights, (np.arange(few), column), share * weight)
    return weights


def to_picture(made: Array, box: Box) -> Image.Image:
    """(1, 3, H, W) in [-1, 1] without its padding; a ValueError for what is no number."""
    if not np.isfinite(made).all():
        raise ValueError("the model made no picture: its numbers are not finite")
    pixels = np.clip(np.round((made[0] + 1) * 127.5), 0, 255).astype(np.uint8)
    return Image.fromarray(
        np.moveaxis(pixels, 0, 2)[box.top : box.top + box.height, box.left : box.left + box.width].copy()
    )


# ---------------------------------------------------------------------------------------------------------------- noise
class Noise:
    """Standard normal numbers as ``torch.Generator().manual_seed(seed)`` gives them on a CPU, to rounding."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed)  # the same Mersenne twister

    def normal(self, *shape: int) -> Array:
        """An array of at least 16 numbers: pairs by Box and Muller, eight apart."""
        count = int(np.prod(shape))
        assert count >= 16
        u = self._uniform(count)
        made = u.copy()
        whole = count // 16 * 16
        made[:whole] = _box_muller(u[:whole])
        if whole != count:  # the last sixteen are drawn anew
            made[-16:] = _box_muller(self._uniform(16))
        return made.reshape(shape)

    def _uniform(self, count: int) -> Array:
        drawn = self._bits.randint(0, 2**32, count, dtype=np.uint32) & np.uint32(2**24 - 1)
        return drawn.astype(np.float32) / np.float32(2**24)


def _box_muller(u: Array) -> Array:
    first, second = u.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - first)), np.float32(2 * np.pi) * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------- graphs
class Model:
    """An exported folder.

    Args:
        folder: with ``device.json``, graphs and arrays.
        threads: for the runtime; 0: as many as there are cores.

    Raises:
        ValueError: no such folder, or no onnxruntime; later, damaged graphs, or inputs of other shapes.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        self.folder, self.threads = Path(folder), threads
        try:
            self.about: dict[str, Any] = json.loads((self.folder / "device.json").read_text())
            self.size: tuple[int, int] = (int(self.about["size"][0]), int(self.about["size"][1]))
            self.arrays = read_arrays(self.folder / "arrays.npz")
            if lacking := NEEDED[self.about["kind"]] - set(self.arrays):
                raise ValueError(f"arrays.npz lacks {', '.join(sorted(lacking))}")
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise ValueError(
                f"{folder} is no exported model ({e}): python -m omfa.export --runtime onnx --out {folder}"
            ) from None
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            raise ValueError("onnxruntime is missing: pip install onnxruntime") from None

    def graph(self, name: str) -> Callable[..., list[Array]]:
        """A graph ready to run, with its inputs by name. Its memory is free again once nothing holds it."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # both keep what has been used
        if self.about["numbers"] != "float32":
            # Weights stored in less are turned back one at a time: no constants folded, nodes in the graph's own order.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        file = str(self.folder / f"{name}.onnx")
        try:
            session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # the runtime has an error of its own for every kind of damage
            raise ValueError(f"{file} can't be loaded ({e!r:.300}): export the model again") from None
        asked = {i.name for i in session.get_inputs()}  # a graph has no input for what its network never looks at

        def run(**inputs: Array) -> list[Array]:
            given = {k: np.ascontiguousarray(v, np.float32) for k, v in inputs.items() if k in asked}
            try:
                return session.run(None, given)
            except Exception as e:
                raise ValueError(f"{file} can't be run ({e!r:.300}); was --drawn made for it?") from None

        return run

    def once(self, name: str, **inputs: Array) -> list[Array]:
        """Load a graph, run it, and let it go."""
        return self.graph(name)(**inputs)


def read_arrays(path: str | Path) -> dict[str, Array]:
    """The arrays of an .npz file; ValueError where it is none."""
    try:
        with np.load(path) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as e:  # every kind of damage has an error of its own
        raise ValueError(f"{path}: no arrays that can be read ({e!r:.300})") from None


Told = Callable[[int, int], None] | None
"""Called after each step with its number and how many there are."""


def try_on(
    model: Model,
    photo: Array,
    garment: Array,
    category: str = "upper",
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    drawn: Mapping[str, Array] | None = None,
    told: Told = None,
) -> Image.Image:
    """The person of a photo in a garment.

    Args:
        model: exported.
        photo, garment: (H, W, 3) uint8, of :func:`read`.
        category: of the garment.
        steps, guidance: of the sampler; None: the model's own.
        seed: of the noise.
        drawn: what bodies show, of :mod:`omfa.graphs.drawn`, for a model of OMFA's. One that was trained with drafts
            needs it; it goes by the pictures alone, badly, where this is an empty mapping.
        told: see there.

    Raises:
        ValueError: a call that asks for the impossible.
    """
    if category not in CATEGORIES:
        raise ValueError(f"category {category!r} must be one of {', '.join(CATEGORIES)}")
    steps = model.about["steps"] if steps is None else steps
    guidance = model.about["guidance"] if guidance is None else guidance
    most = model.about.get("trained_steps", 1000)
    if not 1 <= steps <= most:
        raise ValueError(f"{steps} steps: give 1 to {most}")
    if not np.isfinite(guidance):
        raise ValueError(f"guidance {guidance} must be a number")
    if model.about["kind"] == "pair":
        if drawn is not None:
            raise ValueError("this model takes a photo and a garment, and nothing drawn")
        return _by_pair(model, photo, garment, category, steps, guidance, Noise(seed), told)
    if drawn is None and model.about["drafts"]:
        raise ValueError(
            "this model goes by the body in the photo: give --drawn, made by python -m omfa.graphs.drawn where torch is"
        )
    return _by_rows(model, photo, garment, category, steps, guidance, Noise(seed), drawn or {}, told)


# ---------------------------------------------------------------------------------------------------------- Mobile-VTON
def _by_pair(
    model: Model, photo: Array, garment: Array, category: str, steps: int, guidance: float, noise: Noise, told: Told
) -> Image.Image:
    """Mobile-VTON's steps, as :func:`omfa.baselines.mobile_vton.sampling.sample` takes them."""
    arrays, shift, scale = model.arrays, model.about["latent_shift"], model.about["latent_scale"]
    (person, box), (shop, _) = fit(photo, model.size), fit(garment, model.size, white=True)
    channels, factor = model.about["channels"], model.about["pixels_per_latent"]
    start = noise.normal(1, channels, model.size[0] // factor, model.size[1] // factor)
    encode, latents = model.graph("encode"), []
    for picture in (person, shop):
        mean, spread = encode(pixels=picture)
        latents.append((mean + spread * noise.normal(*mean.shape) - shift) * scale)
    del encode
    (tokens,) = model.once("look", garment=shop)

    def context(text: Array, image: Array | None = None) -> Array:
        wide = np.zeros((1, LENGTH, model.about["context"]), np.float32)
        wide[0, : text.shape[0], : text.shape[1]] = text
        return wide if image is None else np.concatenate([wide, image], 1)

    asked = [context(arrays[f"text_{category}"], tokens)]
    if guidance > 1:
        asked.insert(0, context(arrays["negative"], arrays["no_tokens"]))
    told_garment = context(arrays[f"garment_{category}"])
    garment_net, person_net = model.graph("garment"), model.graph("person")
    seen, x = np.concatenate(latents, 2), np.concatenate([start, start], 2)
    sigmas = flow_levels(steps, model.about["shift"])
    for i in range(steps):
        t = np.array([1000 * sigmas[i]], np.float32)
        features = garment_net(latents=latents[1], t=t, context=told_garment)
        said = []
        for j, words in enumerate(asked):
            given = features if j == len(asked) - 1 else [np.zeros_like(f) for f in features]
            named = {f"feature_{k}": f for k, f in enumerate(given)}
            said.append(person_net(x=x, seen=seen, t=t, context=words, **named)[0])
        velocity = said[0] + guidance * (said[1] - said[0]) if guidance > 1 else said[0]
        x = x + (sigmas[i + 1] - sigmas[i]) * velocity
        if told is not None:
            told(i + 1, steps)
    del garment_net, person_net
    (made,) = model.once("decode", latents=x[:, :, : start.shape[2]] / scale + shift)
    return to_picture(np.clip(made, -1, 1), box)


def flow_levels(steps: int, shift: float) -> Array:
    """Noise levels (steps + 1) of diffusers' FlowMatchEulerDiscreteScheduler; it shifts the smallest twice."""

    def shifted(s: Array) -> Array:
        return (shift * s / (1 + (shift - 1) * s)).astype(np.float32)

    ends = shifted(np.array([1, 0.001], np.float32)) * 1000
    return np.append(shifted(np.linspace(ends[0], ends[1], steps).astype(np.float32) / 1000), np.float32(0))


# --------------------------------------------------------------------------------------------------------- OMFA in rows
def _by_rows(
    model: Model,
    photo: Array,
    garment: Array,
    category: str,
    steps: int,
    guidance: float,
    noise: Noise,
    drawn: Mapping[str, Array],
    told: Told,
) -> Image.Image:
    """A garment put on in a photo: given rows once, then the person's row alone (:mod:`omfa.rows`)."""
    arrays = model.arrays
    (portrait, box), (shop, _) = fit(photo, model.size), fit(garment, model.size, white=True)
    encode = model.graph("encode")

    def latents(picture: Array) -> Array:
        return encode(pixels=picture)[0]

    def plane(name: str) -> Array | None:
        return latents(drawn[name][None]) if name in drawn else None

    place = "garment_2" if category == "lower" and model.about["garment_slots"] > 1 else "garment_1"
    known = {"portrait": latents(portrait), place: latents(shop)}
    nothing = np.zeros_like(known["portrait"])
    draft = plane("draft")
    body, cloth = plane("pose"), plane("garment_map")
    cloth = arrays[f"code_{place}"] if cloth is None else cloth
    slots = model.about["slots"]

    def look(rows: Sequence[tuple[str, Array]]) -> Array:
        """The mean colours of some rows, those that share a slot together (:func:`omfa.conditioning.look`)."""
        cells = []
        for slot in slots:
            here = [_cells(z[0], model.about["cells"]) for s, z in rows if s == slot]
            cells.append(np.mean(here, 0) if here else np.zeros((nothing.shape[1], *model.about["cells"])))
        return np.stack(cells).transpose(0, 2, 3, 1).reshape(1, -1).astype(np.float32)  # (slots, C, y, x) to one row

    remember = model.graph("remember")
    memories = []
    for slot, kind, z, pose in (
        (place, f"garment:{category}", known[place], cloth),
        ("person", "portrait", known["portrait"], nothing),
    ):
        token = arrays["tokens"][model.about["kinds"].index(kind) * 2 + 2][None, None]
        memories.append(remember(known=z, pose=pose, context=token, look=look([(slot, z)])))
    memory = [np.concatenate(layers, 2) for layers in zip(*memories, strict=True)]
    del remember

    rows = [(place, known[place]), ("person", known["portrait"])]
    rows += [] if draft is None else [("person", draft)]
    given = {
        "mask": np.ones(1), "known": nothing if draft is None else draft, "pose": nothing if body is None else body,
        "context": arrays["tokens"][model.about["kinds"].index("person") * 2 + 1][None, None], "look": look(rows),
        **{f"memory_{i}": m for i, m in enumerate(memory)},
    }  # fmt: skip
    without = {
        "mask": np.zeros(1), "known": nothing, "pose": nothing, "context": arrays["tokens"][0][None, None],
        "look": np.zeros_like(given["look"]), **{f"memory_{i}": m[:, :, :0] for i, m in enumerate(memory)},
    }  # fmt: skip
    step, x = model.graph("step"), noise.normal(*nothing.shape)
    for i, (t, now, after) in enumerate(ddim_levels(arrays["alphas"], steps)):
        said = step(x=x, t=np.array([t]), **given)[0]
        if guidance > 1:
            base = step(x=x, t=np.array([t]), **without)[0]
            said = base + guidance * (said - base)
        clean, rest = np.sqrt(now) * x - np.sqrt(1 - now) * said, np.sqrt(now) * said + np.sqrt(1 - now) * x
        x = (np.sqrt(after) * clean + np.sqrt(1 - after) * rest).astype(np.float32)
        if told is not None:
            told(i + 1, steps)
    del step
    (made,) = model.once("decode", latents=x)
    if "large_draft" not in drawn or not model.about["composes"]:
        return to_picture(made, box)
    large, box = fit(photo, model.about["large_size"])
    layers = {n: drawn[f"large_{n}"][None] for n in ("draft", "valid", "surface", "likeness", "where")}
    (made,) = model.once("compose", decoded=made, photo=large, **layers)
    return to_picture(made, box)


def ddim_levels(alphas: Array, steps: int) -> list[tuple[int, np.float32, np.float32]]:
    """Timestep, and what is left of the picture there and after it: DDIM, trailing steps, ending in the picture."""
    at = [int(t) - 1 for t in np.round(np.arange(len(alphas), 0, -len(alphas) / steps))]
    before = [t - len(alphas) // steps for t in at]
    return [(t, alphas[t], alphas[s] if s >= 0 else np.float32(1)) for t, s in zip(at, before, strict=True)]


def _cells(z: Array, cells: Sequence[int]) -> Array:
    """(C, h, w) to its means (C, *cells), as torch's adaptive pooling has it."""

    def means(axis: int, x: Array) -> Array:
        n, many = x.shape[axis], cells[axis - 1]
        parts = [np.take(x, range(i * n // many, -(-(i + 1) * n // many)), axis) for i in range(many)]
        return np.stack([p.mean(axis) for p in parts], axis)

    return means(2, means(1, z))


# -------------------------------------------------------------------------------------------------------------- command
def check_out(path: Path) -> None:
    """ValueError for a file that can't be written, before anything is computed for it."""
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--out {path}: end it in .png or .jpg")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--out {path}: it is a folder, or to be in a folder that is not there")


def main(args: Sequence[str] | None = None) -> int:
    """Make a picture; 0 all well, 2 the call or its input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m omfa.device", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photo", help="of a dressed person")
    parser.add_argument("garment", help="its shop picture")
    parser.add_argument("--model", required=True, help="folder that omfa.export --runtime onnx wrote")
    parser.add_argument("--category", default="upper", choices=CATEGORIES)
    parser.add_argument("-o", "--out", default="made.png", help="picture to write (default made.png)")
    parser.add_argument("--drawn", help="what bodies show, of python -m omfa.graphs.drawn, for a model of OMFA's")
    parser.add_argument("--steps", type=int, help="default: the model's own")
    parser.add_argument("--guidance", type=float, help="default: the model's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: as many as there are cores")
    call = parser.parse_args(args)
    try:
        check_out(Path(call.out))
        drawn = None if call.drawn is None else read_arrays(call.drawn)
        made = try_on(
            *(Model(call.model, call.threads), read(call.photo), read(call.garment), call.category),
            *(call.steps, call.guidance, call.seed, drawn),
            told=lambda i, n: print(f"step {i} of {n}", file=sys.stderr),
        )
        made.save(call.out)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(call.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
