"""Mobile-VTON's pipeline: a photo of a person and a shop picture of a garment to that person in it.

``B`` examples, ``H W`` pixels, ``h w`` latents. Pictures are RGB in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import kornia
import torch
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from omfa import images
from omfa.baselines.mobile_vton.folder import Parts
from omfa.baselines.mobile_vton.light_unet import PIXELS_PER_LATENT
from omfa.baselines.mobile_vton.prompts import NEGATIVE, PLAIN, PromptBook, TextEmbeds, TextEncoders, try_on_phrase
from omfa.baselines.mobile_vton.sampling import GUIDANCE, STEPS, Given, sample
from omfa.components import Category, as_clothes
from omfa.evaluation.predictions import Batch, Input
from omfa.weights import finite

SIZE = (1024, 768)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # DINOv2's
_SHORT, _CROP = 256, 224


@dataclass(frozen=True)
class MobileVTONOutput:
    """Pictures, one for each example.

    Args:
        persons: PIL images; or (B, 3, H, W) in [-1, 1] for "pt"; or latents (B, C, h, w) for "latent".
    """

    persons: Any


class MobileVTON:
    """Try-on with the published pair, or one trained here.

    Args:
        parts: networks and encoders.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts, self.quiet = parts, False

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> MobileVTON:
        """From a folder of the published layout; errors as those of :meth:`Parts.read`."""
        return cls(Parts.read(folder))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that :meth:`from_pretrained` reads."""
        self.parts.write(Path(folder))

    def to(self, device: str | torch.device) -> MobileVTON:
        """Bring everything to a device."""
        p = self.parts
        for part in (p.tryon, p.garment, p.vae, p.image_encoder, p.decoder):
            if part is not None:
                part.to(device)
        if isinstance(p.texts, TextEncoders):
            for encoder in p.texts.encoders:
                encoder.to(device)
        return self

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that the networks hold position tables for; TryonNet's are for two such, one above the other."""
        return self.parts.tryon.config.height // 2, self.parts.tryon.config.width

    @property
    def device(self) -> torch.device:
        """Where TryonNet is."""
        return self.parts.tryon.device

    def without_text_encoders(self, phrases: Sequence[str]) -> MobileVTON:
        """The same, knowing only these phrases (and the one of guidance) and needing no text encoder."""
        assert isinstance(self.parts.texts, TextEncoders), "there are no text encoders to do without"
        return MobileVTON(replace(self.parts, texts=PromptBook.of([*phrases, NEGATIVE], self.parts.texts)))

    # ------------------------------------------------------------------------------------------------- the call
    @torch.no_grad()
    def __call__(
        self,
        person: images.Picture | Sequence[images.Picture],
        garment: images.Picture | Sequence[images.Picture],
        category: Category | str | Sequence[Category | str],
        description: str | Sequence[str] | None = None,
        size: Sequence[int] | None = None,
        num_inference_steps: int = STEPS,
        guidance_scale: float = GUIDANCE,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: Literal["pil", "pt", "latent"] = "pil",
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> MobileVTONOutput:
        """Put garments on.

        Args:
            person: photos of dressed persons; one or B.
            garment: shop pictures; one or B.
            category: what each garment is: "upper", "lower" or "dress".
            description: of each garment, beginning with an article ("a red shirt with a collar").
            size: (H, W) to work at, multiples of 32; None for the one that the networks hold tables for (1024x768
                as published). The picture comes back at the photo's own shape within it.
            num_inference_steps, guidance_scale: of the sampler.
            generator: one, or one for each example.
            output_type: what to return.
            callback: called after each step with its number and the latents.

        Raises:
            ValueError: a call that asks for the impossible, or a picture that can't be used (``ImageError``).
        """
        # 1. Check the call and read the pictures.
        if output_type not in ("pil", "pt", "latent"):
            raise ValueError(f"output_type {output_type!r} must be 'pil', 'pt' or 'latent'")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps {num_inference_steps} must be at least 1")
        size = self.size if size is None else size
        if len(size) != 2 or any(n < 32 or n % 32 for n in size):
            raise ValueError(f"size {tuple(size)} must be height and width, multiples of 32")
        photos, shops = images.as_list(person), images.as_list(garment)
        batch = max(len(photos), len(shops))
        photos, shops = _spread("person", photos, batch), _spread("garment", shops, batch)
        kinds = _spread("category", [category] if isinstance(category, str) else list(category), batch)
        categories = [as_clothes(k) for k in kinds]
        texts = _spread("description", [description] if isinstance(description, str | None) else description, batch)
        told = [str(d or PLAIN[c]) for d, c in zip(texts, categories, strict=True)]
        if isinstance(generator, list) and len(generator) != batch:
            raise ValueError(f"{len(generator)} generators for {batch} pictures; give one, or one per picture")
        fitted = [images.load(p, size, "edge", "person") for p in photos]
        persons = torch.stack([p for p, _ in fitted]).to(self.device)
        garments = torch.stack([images.load(g, size, "white", "garment")[0] for g in shops]).to(self.device)

        # 2. Noise first, as the published program draws it, then everything given.
        channels = self.parts.vae.config.latent_channels
        shape = (batch, channels, *(n // PIXELS_PER_LATENT for n in size))
        noise = randn_tensor(shape, generator=generator, device=self.device, dtype=torch.float32)
        phrases = [try_on_phrase(c, d) for c, d in zip(categories, told, strict=True)]
        given = self.encode(persons, garments, self.texts(phrases), self.texts(told), generator)

        # 3. Denoise.
        with tqdm(total=num_inference_steps, disable=self.quiet) as bar:

            def progress(i: int, x: Tensor) -> None:
                bar.update()
                if callback is not None:
                    callback(i, x)

            networks = self.parts.tryon, self.parts.garment
            latents = sample(*networks, given, noise, num_inference_steps, guidance_scale, progress)

        # 4. Decode, and cut off what was padded.
        if output_type == "latent":
            return MobileVTONOutput(latents)
        pixels = self.decode(latents)
        if output_type == "pt":
            return MobileVTONOutput(pixels)
        rows = zip(images.tensor_to_pixels(pixels), fitted, strict=True)
        return MobileVTONOutput([Image.fromarray(p[box.window]) for p, (_, box) in rows])

    # ------------------------------------------------------------------------------------------------ being judged
    try_on_needs = frozenset({Input.PHOTO, Input.GARMENTS})
    try_on_takes: frozenset[Input] = frozenset()

    @classmethod
    def sampler_defaults(cls, weights: str) -> tuple[int, float]:
        """Steps and guidance of a call that names none."""
        return STEPS, GUIDANCE

    @classmethod
    def weights_path(cls, weights: str) -> Path | None:
        """Where weights lie, if here."""
        return Path(weights) if Path(weights).is_dir() else None

    def try_on(self, batch: Batch) -> list[Image.Image]:
        """A picture of each person of a batch in its garments, put on one after the other in the batch's order."""
        pictures: list[Any] = list(batch.photos)
        for category, garments in batch.garments.items():
            steps = STEPS if batch.steps is None else batch.steps
            guidance = GUIDANCE if batch.guidance is None else batch.guidance
            made = self(
                pictures,
                list(garments),
                category,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=list(batch.generators),
            )
            pictures = made.persons
        return pictures

    # --------------------------------------------------------------------------------------- in and out of latents
    def texts(self, phrases: Sequence[str]) -> TextEmbeds:
        """Phrases as the text encoders see them, or saw them ahead.

        Raises:
            ValueError: there are no encoders and nothing was encoded ahead.
        """
        if self.parts.texts is None:
            raise ValueError("this model has no text encoders and no phrases encoded ahead; add either to its folder")
        return self.parts.texts(phrases)

    def encode(
        self, persons: Tensor, garments: Tensor, told: TextEmbeds, garment_told: TextEmbeds, generator: Any = None
    ) -> Given:
        """Pictures (B, 3, H, W) and phrases as the networks take them."""
        width = self.parts.tryon.config.cross_attention_dim
        features, nothing = self.features(garments)

        def context(embeds: TextEmbeds) -> Tensor:
            return embeds.context(width).to(self.device)

        return Given(
            person=self.latents(persons, generator),
            garment=self.latents(garments, generator),
            text=context(told),
            negative=context(self.texts([NEGATIVE])).expand(len(persons), -1, -1),
            garment_text=context(garment_told),
            features=features,
            no_features=nothing.expand_as(features),
        )

    def latents(self, pixels: Tensor, generator: Any = None) -> Tensor:
        """Pixels (B, 3, H, W) -> a sample of their latents (B, C, h, w), shifted and scaled."""
        vae = self.parts.vae
        raw = vae.encode(pixels.to(vae.dtype)).latent_dist
        noise = randn_tensor(raw.mean.shape, generator=generator, device=raw.mean.device, dtype=raw.mean.dtype)
        return scaled(raw.mean + raw.std * noise, vae).float()

    def features(self, garments: Tensor) -> tuple[Tensor, Tensor]:
        """What DINOv2 sees in pictures (B, P, F) and in a picture of zeros (1, P, F): hidden states, last but one.

        The pictures are resized and cropped as DINOv2 was trained to have them; the published program does not say.
        """
        pixels = for_the_eye(garments / 2 + 0.5).clamp(0, 1)
        mean, std = (torch.tensor(v, device=pixels.device)[:, None, None] for v in (MEAN, STD))
        pixels = torch.cat([(pixels - mean) / std, torch.zeros_like(pixels[:1])])
        states = self.parts.image_encoder(pixels, output_hidden_states=True).hidden_states[-2]
        return states[:-1], states[-1:]

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, H, W) in [-1, 1], by the small decoder where there is one."""
        raw = unscaled(latents.float(), self.parts.vae)
        if self.parts.decoder is not None:
            return finite(self.parts.decoder(raw)).clamp(-1, 1)
        return finite(self.parts.vae.decode(raw.to(self.parts.vae.dtype)).sample.float()).clamp(-1, 1)


def for_the_eye(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), resized and cut to the square (B, 3, 224, 224) that DINOv2 looks at."""
    size, (rows, columns) = eye_window(pictures.shape[-2:])
    smaller = size[0] < pictures.shape[-2]
    return kornia.geometry.resize(pictures, size, interpolation="bicubic", antialias=smaller)[..., rows, columns]


def eye_window(size: Sequence[int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """What a picture of (H, W) is resized to for DINOv2, and the square that is cut out of it."""
    height, width = (max(_SHORT, round(n * _SHORT / min(size))) for n in size)
    rows, columns = (slice((n - _CROP) // 2, (n - _CROP) // 2 + _CROP) for n in (height, width))
    return (height, width), (rows, columns)


def scaled(raw: Tensor, vae: Any) -> Tensor:
    """The VAE's own latents -> those of the networks. Undone by :func:`unscaled`."""
    return (raw - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def unscaled(latents: Tensor, vae: Any) -> Tensor:
    """The networks' latents -> the VAE's own."""
    return latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)


def _spread(name: str, values: Sequence[Any], batch: int) -> list[Any]:
    """One value for all, or one for each."""
    if len(values) not in (1, batch):
        raise ValueError(f"{len(values)} values of {name} for {batch} pictures; give one, or one per picture")
    return list(values) * (batch if len(values) == 1 else 1)
