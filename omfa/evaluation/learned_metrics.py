"""Feature networks behind the learned metrics: thin, loading the official weight files, checked against the packages.

LPIPS, DISTS, Inception (FID, KID), CLIP (CLIP-FID, CLIP-I) and DINO. No network is ever used with weights that were not
read from a file: what is missing raises :class:`MissingWeights`, which names the file and where it belongs.

Pictures are (B, 3, H, W) in [0, 1]. Legend: B batch, C channels, D feature width, h w a layer's pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Trunk = Literal["alex", "vgg", "squeeze"]

URLS = {
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "squeeze": "https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth",
    "inception": "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    "dino": "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    "clip": "https://huggingface.co/openai/clip-vit-base-patch32",
}
SHA256 = {"alex": "7be5be79", "vgg": "397923af", "squeeze": "b8a52dc0"}  # leading digits, as the official names give

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class MissingWeights(LookupError):
    """A metric's weights are not on this machine; the message is the cure."""


def _normalise(x: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (x - x.new_tensor(mean).view(1, -1, 1, 1)) / x.new_tensor(std).view(1, -1, 1, 1)


# ------------------------------------------------------------------------------------------------- finding weights
def find_weights(name: str, folder: Path | None = None, download: bool = False) -> Path:
    """The official weight file (for CLIP: folder) called ``name``, a key of ``URLS``.

    Looked for in ``folder``, then in the torch hub's folder; fetched into the first of them only if ``download``.

    Raises:
        MissingWeights: not there.
        ValueError: a file of that name whose contents are not the official ones.
    """
    hub = Path(torch.hub.get_dir()) / "checkpoints"
    file = URLS[name].rsplit("/", 1)[1]
    for place in (folder, hub):
        if place is not None and (place / file).exists():
            _check_contents(name, place / file)
            return place / file
    if not download:
        raise MissingWeights(f"{file} is missing: put it into --weights DIR (from {URLS[name]}), or give --download")
    target = (folder or hub) / file
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if name == "clip":
            from huggingface_hub import snapshot_download

            snapshot_download("openai/clip-vit-base-patch32", local_dir=target)
        else:
            torch.hub.download_url_to_file(URLS[name], str(target), SHA256.get(name), progress=False)
    except Exception as e:  # the network, the disk, a broken file: the cure is the same
        raise MissingWeights(f"{file} can't be fetched from {URLS[name]} ({e}): put it into --weights DIR") from None
    return target


def _check_contents(name: str, path: Path) -> None:
    if name in SHA256 and not sha256(path).startswith(SHA256[name]):
        raise ValueError(f"{path} is not the official file (SHA-256 begins with {SHA256[name]}): fetch it again")


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder's weight file, in hexadecimal."""
    if path.is_dir():
        path = next((p for p in (path / "model.safetensors", path / "pytorch_model.bin") if p.exists()), path)
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, mtime: int) -> str:
    if path.is_dir():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _torchmetrics_file(name: str) -> Path:
    """A small weight file that torchmetrics ships (LPIPS heads, DISTS weights), found without importing it."""
    spec = importlib.util.find_spec("torchmetrics")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(folders[0], "functional", "image", name) if folders else None
    if path is None or not path.is_file():
        raise MissingWeights(f"{name} comes with torchmetrics, which is not installed: pip install torchmetrics")
    return path


def _load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


# ---------------------------------------------------------------------------------------------- convolutional trunks
def _convs(*layers: tuple[int, ...] | str) -> nn.Sequential:
    """Layers in the official numbering: (in, out, kernel, stride, padding) with its ReLU, or a pool by name."""
    pools = {"3/2": (3, 2, False), "2/2": (2, 2, False), "3/2 ceil": (3, 2, True)}
    modules: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, str):
            kernel, stride, ceil = pools[layer]
            modules.append(nn.MaxPool2d(kernel, stride, ceil_mode=ceil))
        elif len(layer) == 4:
            modules.append(_Fire(*layer))
        else:
            wide, out, kernel, stride, padding = layer
            modules += [nn.Conv2d(wide, out, kernel, stride, padding), nn.ReLU()]
    return nn.Sequential(*modules)


class _Fire(nn.Module):
    """SqueezeNet's block (Iandola et al. 2016)."""

    def __init__(self, channels: int, squeeze: int, one: int, three: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, one, 1)
        self.expand3x3 = nn.Conv2d(squeeze, three, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1x1(x).relu(), self.expand3x3(x).relu()), 1)


def _alex() -> nn.Sequential:
    first, second = (3, 64, 11, 4, 2), (64, 192, 5, 1, 2)
    rest = [(192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
    return _convs(first, "3/2", second, "3/2", *rest)


def _vgg() -> nn.Sequential:
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    layers: list[tuple[int, ...] | str] = [(i, o, 3, 1, 1) for i, o in pairwise(widths)]
    for conv in (10, 7, 4, 2):
        layers.insert(conv, "2/2")
    return _convs(*layers)


def _squeeze() -> nn.Sequential:
    early = [(64, 16, 64, 64), (128, 16, 64, 64)]
    middle = [(128, 32, 128, 128), (256, 32, 128, 128)]
    late = [(256, 48, 192, 192), (384, 48, 192, 192), (384, 64, 256, 256), (512, 64, 256, 256)]
    return _convs((3, 64, 3, 2, 0), "3/2 ceil", *early, "3/2 ceil", *middle, "3/2 ceil", *late)


TRUNKS = {"alex": _alex, "vgg": _vgg, "squeeze": _squeeze}
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29), "squeeze": (1, 4, 7, 9, 10, 11, 12)}


def build_trunk(net: Trunk, state: Mapping[str, Tensor]) -> nn.Sequential:
    """The convolutional part of a classifier with weights out of its official state dict.

    Args:
        net: which.
        state: keys ``features.N...``; the classifier's own keys are left out.

    Raises:
        RuntimeError: a weight is missing or has another shape.
    """
    trunk = TRUNKS[net]()
    trunk.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    return trunk.eval().requires_grad_(False)


class LPIPS(nn.Module):
    """Learned perceptual distance v0.1 (Zhang et al. 2018), heads included; 0 is the same picture.

    Args:
        net: the trunk; tables differ by it, so name it.
        state: the trunk's official state dict.
        heads: ``lin{i}.model.1.weight`` (1, C, 1, 1); None: those torchmetrics ships (the official ones).
    """

    def __init__(self, net: Trunk, state: Mapping[str, Tensor], heads: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.trunk, self.taps = build_trunk(net, state), TAPS[net]
        heads = _load(_torchmetrics_file(f"lpips_models/{net}.pth")) if heads is None else heads
        self.heads = nn.ParameterList(heads[f"lin{i}.model.1.weight"] for i in range(len(self.taps)))
        self.requires_grad_(False)

    def _features(self, x: Tensor) -> list[Tensor]:
        x = _normalise(2 * x - 1, (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        found = []
        for index, layer in enumerate(self.trunk):
            x = layer(x)
            if index in self.taps:
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    def forward(self, pred: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
        """Distance (B,) of pictures (B, 3, H, W) in [0, 1].

        With a mask (B, 1, H, W), each layer's distance map is averaged over the mask shrunk to its size, instead of
        over the whole picture.
        """
        layers = zip(self._features(pred), self._features(truth), self.heads, strict=True)
        maps = [F.conv2d((a - b) ** 2, head) for a, b, head in layers]
        if mask is None:
            return torch.stack([m.mean((1, 2, 3)) for m in maps]).sum(0)
        weights = [F.interpolate(mask.to(m), m.shape[2:], mode="area") for m in maps]
        return torch.stack([(m * w).sum((1, 2, 3)) / w.sum((1, 2, 3)) for m, w in zip(maps, weights, strict=True)]).sum(
            0
        )


class DISTS(nn.Module):
    """Structure and texture distance (Ding et al. 2020); 0 is the same picture. No resizing inside.

    Args:
        state: VGG16's official state dict.
        weights: ``alpha`` and ``beta`` (1, 1475, 1, 1); None: those torchmetrics ships (the official ones).
    """

    def __init__(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.trunk = build_trunk("vgg", state)
        weights = _load(_torchmetrics_file("dists_models/weights.pt")) if weights is None else weights
        self.alpha, self.beta = (nn.Parameter(weights[k].flatten(), requires_grad=False) for k in ("alpha", "beta"))

    @staticmethod
    def _pool(x: Tensor) -> Tensor:
        """L2 pooling with a Hann window: halves h and w without aliasing."""
        g = x.new_tensor([1.0, 2.0, 1.0]) / 4
        kernel = (g[:, None] * g).expand(x.shape[1], 1, 3, 3)
        return (F.conv2d(x**2, kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()

    def _features(self, x: Tensor) -> list[Tensor]:
        found = [x]
        x = _normalise(x, IMAGENET_MEAN, IMAGENET_STD)
        for index, layer in enumerate(self.trunk):
            x = self._pool(x) if isinstance(layer, nn.MaxPool2d) else layer(x)
            if index in TAPS["vgg"]:
                found.append(x)
        return found

    def forward(self, pred: Tensor, truth: Tensor) -> Tensor:
        """Distance (B,) of pictures (B, 3, H, W) in [0, 1]."""
        texture, structure = [], []
        for a, b in zip(self._features(pred), self._features(truth), strict=True):
            ma, mb = a.mean((2, 3), keepdim=True), b.mean((2, 3), keepdim=True)
            va, vb = ((a - ma) ** 2).mean((2, 3)), ((b - mb) ** 2).mean((2, 3))
            cov = ((a - ma) * (b - mb)).mean((2, 3))
            ma, mb = ma.flatten(1), mb.flatten(1)
            texture.append((2 * ma * mb + 1e-6) / (ma**2 + mb**2 + 1e-6))
            structure.append((2 * cov + 1e-6) / (va + vb + 1e-6))
        score = (self.alpha * torch.cat(texture, 1) + self.beta * torch.cat(structure, 1)).sum(1)
        return 1 - score / (self.alpha + self.beta).sum()


# ------------------------------------------------------------------------------------------------ embedding networks
def resize_clean(x: Tensor, size: tuple[int, int] = (299, 299)) -> Tensor:
    """clean-fid's resize: bicubic, antialiased, in floats, clipped, not rounded; the aspect is not kept.

    Args:
        x: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, *size) in [0, 255].
    """
    return F.interpolate(x * 255, size, mode="bicubic", antialias=True).clamp(0, 255)


def centre_crop(x: Tensor, side: int, crop: int) -> Tensor:
    """Shorter side to ``side`` (bicubic, antialiased, rounded to 8 bits as Pillow does), then the middle square.

    Args:
        x: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, crop, crop) in [0, 1].
    """
    height, width = x.shape[-2:]
    scale = side / min(height, width)
    size = (side, int(width * scale)) if height < width else (int(height * scale), side)
    for step in ((height, size[1]), size):  # Pillow rounds and clips after each of its two passes, width first
        x = F.interpolate(x * 255, step, mode="bicubic", antialias=True).round().clamp(0, 255) / 255
    top, left = (round((s - crop) / 2) for s in x.shape[-2:])
    return x[..., top : top + crop, left : left + crop]


class Inception(nn.Module):
    """Inception of 2015-12-05 as FID and KID use it: pool features (B, 2048).

    Args:
        path: the official TorchScript file, which holds the network.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.layers = torch.jit.load(str(path), map_location="cpu").eval().layers

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 2048)."""
        return self.layers((resize_clean(x) - 128) / 128).flatten(1)


class CLIP(nn.Module):
    """CLIP ViT-B/32's projected picture embedding, not normalised: CLIP-FID and (as a cosine) CLIP-I.

    The middle square of the picture is seen: 75 % of a 3:4 portrait, collar and hem cut.

    Args:
        folder: a saved ``CLIPModel`` or ``CLIPVisionModelWithProjection``.

    Raises:
        ValueError: a weight is missing in the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        from transformers import CLIPVisionModelWithProjection
        from transformers.utils import logging

        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # that the text encoder is left out needs no table
        load = CLIPVisionModelWithProjection.from_pretrained
        self.network, info = load(folder, local_files_only=True, output_loading_info=True)
        logging.set_verbosity(verbosity)
        if info["missing_keys"] or info["mismatched_keys"]:  # these would have been left random
            raise ValueError(
                f"{folder} lacks weights of CLIP's picture encoder: {sorted(info['missing_keys'])[:3]} ..."
            )
        self.network.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D)."""
        side = self.network.config.image_size
        return self.network(_normalise(centre_crop(x, side, side), CLIP_MEAN, CLIP_STD)).image_embeds


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.attn["qkv"](self.norm1(x)), "b n (s h d) -> s b h n d", s=3, h=self.heads)
        x = x + self.attn["proj"](rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class DINO(nn.Module):
    """DINO ViT-S/16 (Caron et al. 2021): class token after the last norm, (B, 384).

    Args:
        state: the official backbone's state dict (``dino_deitsmall16_pretrain.pth``).

    Raises:
        RuntimeError: a weight is missing or has another shape.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        width = 384
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, 197, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, 16, 16)})
        self.blocks = nn.ModuleList(_Block(width, heads=6) for _ in range(12))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.load_state_dict(dict(state))
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 384)."""
        x = _normalise(centre_crop(x, 256, 224), IMAGENET_MEAN, IMAGENET_STD)
        tokens = rearrange(self.patch_embed["proj"](x), "b c h w -> b (h w) c")
        tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), 1) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, 0])


# ----------------------------------------------------------------------------------------------- one door for them all
NEEDS = {
    "lpips_alex": "alex",
    "lpips_vgg": "vgg",
    "lpips_squeeze": "squeeze",
    "dists": "vgg",
    "inception": "inception",
    "clip": "clip",
    "dino": "dino",
}
"""Network by name, and the weights it needs."""


def load_network(name: str, folder: Path | None = None, download: bool = False) -> nn.Module:
    """A network of ``NEEDS`` with its official weights, ready to use on the CPU.

    Raises:
        MissingWeights: the weights are not on this machine.
        ValueError: the file there is not the official one.
    """
    path = find_weights(NEEDS[name], folder, download)
    try:
        if name == "inception":
            return Inception(path)
        if name == "clip":
            return CLIP(path)
        if name == "dino":
            return DINO(_load(path))
        if name == "dists":
            return DISTS(_load(path))
        net: dict[str, Trunk] = {"lpips_alex": "alex", "lpips_vgg": "vgg", "lpips_squeeze": "squeeze"}
        return LPIPS(net[name], _load(path))
    except (RuntimeError, OSError, AttributeError, KeyError) as e:
        raise ValueError(
            f"{path} is not the official file ({str(e).splitlines()[0]}): fetch {URLS[NEEDS[name]]}"
        ) from None
