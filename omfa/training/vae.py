"""Training the compact model's own VAE: pictures to learn from, the module, and its latents evened out.

``C`` latent channels, ``H W`` pixels, ``h w`` latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import kornia
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from omfa import images
from omfa.records.stream import seeded
from omfa.training.model_card import forget_origins
from omfa.training.rates import Rates
from omfa.training.streaming import StreamDataModule

# Photographs in scikit-image's wheel that are in the public domain or CC0, as its own documentation says.
PHOTOGRAPHS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "hubble_deep_field.jpg"),
    *("retina.jpg", "brick.png", "grass.png", "gravel.png"),
)


def packaged_photographs() -> list[Path]:
    """The openly licensed photographs that ship with scikit-image; none where it is not installed."""
    found = find_spec("skimage")
    folder = Path(found.origin).parent / "data" if found and found.origin else None
    return [folder / name for name in PHOTOGRAPHS if (folder / name).is_file()] if folder else []


class PicturesDataset(Dataset[Tensor]):
    """Crops of all pictures in some folders, of photographs and of textures, for training a VAE.

    Indexed by (epoch, position).

    Args:
        folders: searched recursively for pictures of any size.
        size: (height, width) of a crop.
        textures: fraction of examples that are textures of noise, stripes and flat colours instead.
        photographs: fraction of examples that are crops of :func:`packaged_photographs`, recoloured and mirrored.
        seed: seeds every draw.

    Raises:
        ImageError: a folder that is none, no pictures in them, or photographs asked for and not there.
    """

    def __init__(
        self,
        folders: Sequence[str],
        size: Sequence[int],
        textures: float = 0.1,
        photographs: float = 0.0,
        seed: int = 0,
    ) -> None:
        missing = [f for f in folders if not Path(f).is_dir()]
        if missing:
            raise images.ImageError(f"no such folder: {', '.join(missing)}")
        found = [p for f in folders for p in sorted(Path(f).rglob("*")) if p.suffix.lower() in images.SUFFIXES]
        self.paths = [p for p in found if "masks" not in p.parts]
        if not self.paths:
            raise images.ImageError(f"no pictures in {', '.join(folders)}")
        self.photographs = packaged_photographs() if photographs > 0 else []
        if photographs > 0 and not self.photographs:
            raise images.ImageError("photographs come with scikit-image: pip install scikit-image, or photographs=0")
        self.size, self.seed = (int(size[0]), int(size[1])), seed
        self.shares = textures, textures + photographs

    def __len__(self) -> int:
        return len(self.paths)

    def collate(self, examples: list[Tensor]) -> Tensor:
        """A batch of crops (B, 3, H, W)."""
        return default_collate(examples)

    def __getitem__(self, key: tuple[int, int]) -> Tensor:
        epoch, position = key
        generator = seeded(self.seed, epoch, position)
        u = torch.rand(6, generator=generator).tolist()
        if u[0] < self.shares[0]:
            return texture(self.size, generator)
        if u[0] >= self.shares[1]:
            return self._crop(images.read_trusted(self.paths[position]), u)
        crop = self._crop(images.read_trusted(self.photographs[int(u[5] * len(self.photographs))]), u)
        crop = crop[torch.randperm(3, generator=generator)]
        return crop.flip(-1) if torch.rand((), generator=generator) < 0.5 else crop

    def _crop(self, picture: Tensor, u: Sequence[float]) -> Tensor:
        """A crop at the picture's own scale (half the time), or at one between a crop's size and 1.5 times its own."""
        h, w = picture.shape[1:]
        least = max(self.size[0] / h, self.size[1] / w)
        scale = max(least, 1.0) if u[1] < 0.5 else max(least, min(least, 1.0) * (1.5 / min(least, 1.0)) ** u[2])
        if scale != 1:
            size = max(self.size[0], round(h * scale)), max(self.size[1], round(w * scale))
            picture = kornia.geometry.resize(picture[None], size, antialias=scale < 1)[0].clamp(-1, 1)
        top = int(u[3] * (picture.shape[1] - self.size[0] + 1))
        left = int(u[4] * (picture.shape[2] - self.size[1] + 1))
        return picture[:, top : top + self.size[0], left : left + self.size[1]]


def texture(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise at a random scale between two colours, with or without stripes, (3, *size) in [-1, 1]."""
    colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
    u = torch.rand(4, generator=generator)
    cells = int(2 ** (2 + 4 * u[0]))
    blend = torch.rand(1, 1, cells, cells, generator=generator)
    blend = kornia.geometry.resize(blend, size, interpolation="bicubic")[0].clamp(0, 1)
    if u[1] < 0.5:
        y, x = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
        angle, period = u[2] * torch.pi, 4 + 28 * u[3]
        wave = torch.sin((x * angle.cos() + y * angle.sin()) * 2 * torch.pi / period)
        blend = (0.2 * blend + 0.8 * (wave > 0)).float()
    return colours[0] + (colours[1] - colours[0]) * blend


class PicturesDataModule(StreamDataModule):
    """Crops of pictures, for training a VAE; see :class:`PicturesDataset`.

    Args:
        folders: searched recursively for pictures.
        size: (height, width) of a crop.
        textures: fraction of made-up textures.
        photographs: fraction of crops of openly licensed photographs (scikit-image's).
        batch_size: crops per process and batch.
        workers: loader processes.
        seed: seeds order, crops and textures.
    """

    def __init__(
        self,
        folders: list[str],
        size: list[int],
        textures: float = 0.1,
        photographs: float = 0.0,
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, workers, seed)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(f"size {size} must be height and width in pixels, like [128, 128]")
        self.folders, self.size = folders, size
        self.textures, self.photographs = textures, photographs

    def dataset(self) -> PicturesDataset:
        """The pictures."""
        return PicturesDataset(self.folders, self.size, self.textures, self.photographs, self.seed)


class VAEModule(pl.LightningModule):
    """Trains the compact model's own VAE: absolute error of pixels and of their differences, and a little KL.

    Args:
        vae: arguments of diffusers' ``AutoencoderKL``, such as :func:`start_as_averages` can use.
        learning_rate: AdamW's, after warm-up.
        kl_weight: of the KL divergence per latent number.
        edge_weight: of the error of horizontal and vertical differences; keeps stripes and outlines sharp.
        warmup_steps, decay_from: as in :class:`omfa.training.rates.Rates`.
        channels_last: memory format.
    """

    latent_mean: Tensor
    latent_products: Tensor

    def __init__(
        self,
        vae: dict[str, Any],
        learning_rate: float = 1e-3,
        kl_weight: float = 1e-5,
        edge_weight: float = 1.0,
        warmup_steps: int = 100,
        decay_from: float = 0.5,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.vae = start_as_averages(AutoencoderKL(**vae))
        if channels_last:
            self.vae.to(memory_format=torch.channels_last)
        self.rates = Rates(learning_rate, 0.0, warmup_steps, decay_from)
        self.kl_weight, self.edge_weight = kl_weight, edge_weight
        channels = self.vae.config.latent_channels
        self.register_buffer("latent_mean", torch.zeros(channels))  # running means of latents and of their products
        self.register_buffer("latent_products", torch.eye(channels))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """One step on pictures (B, 3, H, W) in [-1, 1]."""
        posterior = self.vae.encode(batch).latent_dist
        error = (
            self.vae.decode(posterior.sample(seeded("posterior", self.global_step, batch_idx, self.global_rank))).sample
            - batch
        ).float()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        self.measure(posterior.mean.detach().float())
        self.log("psnr", 10 * torch.log10(4 / error.detach().square().mean()), prog_bar=True, batch_size=len(batch))
        self.log("kl", kl.detach(), batch_size=len(batch))
        return error.abs().mean() + self.edge_weight * edges + self.kl_weight * kl

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a linear fall at the end."""
        return self.rates.adamw(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the rates of the config."""
        self.rates.follow(checkpoint, self)

    def measure(self, latents: Tensor) -> None:
        """Follow mean and covariance of latents (B, C, h, w)."""
        cells = rearrange(latents, "b c h w -> (b h w) c")
        self.latent_mean.lerp_(cells.mean(0), 0.01)
        self.latent_products.lerp_(cells.T @ cells / len(cells), 0.01)

    def save(self, folder: Path, whole: bool = False, dtype: torch.dtype | None = None) -> None:
        """Write a plain diffusers folder, its latents evened out and, by ``scaling_factor``, of variance 1.

        See :class:`omfa.training.parts.Saves`; the folder is always a whole model.
        """
        vae = deepcopy(self.vae)  # training goes on with its own
        even_out(vae, self.latent_mean, self.latent_products - torch.outer(self.latent_mean, self.latent_mean))
        torch.nn.Module.to(vae, dtype)  # what is evened out is so in float32
        vae.save_pretrained(folder)
        forget_origins(folder)


@torch.no_grad()
def even_out(vae: AutoencoderKL, mean: Tensor, covariance: Tensor) -> None:
    """Give a VAE latents of mean 0 whose directions differ less; ``post_quant_conv`` undoes it: the pictures stay.

    Noise hides what is small first and squared errors overlook it. In latents as they come brightness has ten times the
    variance of hue, so a network learns hues late and takes noise for them. Here each eigenvalue of the covariance
    becomes its square root: half-way to white latents, which would make as much of the finest detail as of everything
    else. Log-variances are turned nearly: weighted means of the old ones, plus the log of the stretch.

    Args:
        vae: changed in place, its ``scaling_factor`` too.
        mean: of its latents, before ``scaling_factor``, (C,).
        covariance: (C, C).

    Raises:
        ValueError: a VAE without quant convolutions, which are what changes.
    """
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ValueError("the VAE needs use_quant_conv and use_post_quant_conv")
    into, out, c = vae.quant_conv, vae.post_quant_conv, len(mean)
    mean, (values, vectors) = mean.double(), torch.linalg.eigh(covariance.double())
    values = values.clamp(min=values.max() * 1e-6)
    turn, back = (vectors @ torch.diag(values**power) @ vectors.T for power in (-0.25, 0.25))
    stretch = turn.square()
    both = torch.block_diag(turn, stretch / stretch.sum(1, keepdim=True))
    weight, bias = into.weight.double(), into.bias.double()
    into.weight.copy_(torch.einsum("ij,jkhw->ikhw", both, weight))
    into.bias.copy_(both @ (bias - F.pad(mean, (0, c))) + F.pad(stretch.sum(1).log(), (c, 0)))
    weight, bias = out.weight.double(), out.bias.double()
    out.bias.copy_(bias + weight[..., 0, 0] @ mean)
    out.weight.copy_(torch.einsum("ijhw,jk->ikhw", weight, back))
    vae.register_to_config(scaling_factor=float(values.sqrt().mean().rsqrt()))


@torch.no_grad()
def start_as_averages(vae: AutoencoderKL) -> AutoencoderKL:
    """Make a fresh VAE a codec that keeps the mean colour of every f x f square and blurs it back; training adds to it.

    From random weights a small VAE learns brightness first and colour hours later; from here colours are right at step
    0. The trunk (everything but the residual branches, which start at 0) carries r, g, b, their negatives and a pair of
    constants: x and -x keep the last norm's mean at 0 and make ``silu(x) - silu(-x) = x`` linear, the constants keep
    its scale the same for every picture. All other channels start at random.

    Args:
        vae: of at least 8 channels everywhere, 3 or more latent channels, ``norm_num_groups=1``, with quant
            convolutions; changed in place.

    Raises:
        ValueError: another VAE.
    """
    config = vae.config
    quant = vae.quant_conv is not None and vae.post_quant_conv is not None
    if min(config.block_out_channels) < 8 or config.latent_channels < 3 or config.norm_num_groups != 1 or not quant:
        raise ValueError(
            "the VAE needs 8 or more channels in every block, 3 or more latents, norm_num_groups 1, and both quant "
            "convolutions"
        )
    encoder, decoder, trunk, level = vae.encoder, vae.decoder, 8, 8.0
    for part in (encoder, decoder):
        for name, module in part.named_modules():
            if name.endswith("conv_shortcut") or name.endswith(("downsamplers.0.conv", "upsamplers.0.conv")):
                module.weight[:trunk], module.bias[:trunk], module.weight[:, 6:trunk] = 0, 0, 0
                for c in range(trunk):
                    module.weight[c, c] = _kernel(name, constant=c >= 6)
            elif name.endswith("conv2"):  # of a residual branch
                module.weight.zero_()
                module.bias.zero_()
        conv_in, conv_out = part.conv_in, part.conv_out
        conv_in.weight[:trunk], conv_in.bias[:trunk] = 0, 0
        for c in range(3):
            conv_in.weight[c, c, 1, 1], conv_in.weight[3 + c, c, 1, 1] = 1, -1
        conv_in.bias[6], conv_in.bias[7] = level, -level
        scale = level * (2 / conv_out.in_channels) ** 0.5  # what the last norm divides by, nearly
        rows = slice(0, 3) if part is encoder else slice(None)
        conv_out.weight[rows], conv_out.bias[rows] = 0, 0
        for c in range(3):
            conv_out.weight[c, c, 1, 1], conv_out.weight[c, 3 + c, 1, 1] = scale, -scale
    encoder.conv_out.weight[config.latent_channels :] = 0
    encoder.conv_out.bias[config.latent_channels :] = -6  # log-variance: little noise, to begin with
    for conv in (vae.quant_conv, vae.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()
    return vae


def _kernel(name: str, constant: bool) -> Tensor:
    """Trunk kernel of a layer: identity, the mean of 2 x 2 (down) or a smooth interpolation (up)."""
    if name.endswith("conv_shortcut"):
        return torch.ones(1, 1)
    kernel = torch.zeros(3, 3)
    if constant:  # a constant stays one at the borders too
        kernel[0 if "down" in name else 1, 0 if "down" in name else 1] = 1
    elif "down" in name:
        kernel[:2, :2] = 0.25
    else:
        taps = torch.tensor([0.25, 0.5, 0.25])
        kernel = taps[:, None] * taps
    return kernel
