"""Pipelines to begin a training with: from Stable Diffusion 1.4, or small ones from nothing."""

from __future__ import annotations

from typing import Any

from omfa.baselines.tryoffdiff.networks import (
    CLASSES,
    ImageAdapter,
    Version,
    add_classes,
    make_adapter,
    make_scheduler,
    make_unet,
)
from omfa.baselines.tryoffdiff.parts import SD14, SIGLIP_HUB, load_encoder, load_unet, load_vae
from omfa.baselines.tryoffdiff.pipeline import PUBLISHED, TryOffDiffPipeline


def sd14_pipeline(
    version: Version = "mgt",
    base: str = SD14,
    image_encoder: str = SIGLIP_HUB,
    vae: str | None = None,
    categories: list[str] | None = None,
) -> TryOffDiffPipeline:
    """Stable Diffusion 1.4 behind a fresh adapter, as the published models began.

    Args:
        version: "v1", "v2" or "mgt".
        base: folder or hub id of SD 1.4.
        image_encoder: folder or hub id of SigLIP.
        vae: folder or hub id of another VAE; None: the base's.
        categories: what to take off; None: "upper" for v1 and v2, everything for MGT.

    Raises:
        ValueError: weights that are not there, says how to get them; or no such version.
    """
    if version not in PUBLISHED:
        raise ValueError(f"version {version!r} must be one of {', '.join(PUBLISHED)}")
    unet = load_unet(f"{base}/unet")
    if version == "mgt":
        add_classes(unet)
    known = categories or (list(CLASSES) if version == "mgt" else ["upper"])
    encoder = load_encoder(image_encoder)
    tokens = (encoder.config.image_size // encoder.config.patch_size) ** 2
    return TryOffDiffPipeline(
        load_vae(vae or f"{base}/vae"), unet, make_adapter(version, tokens, unet.config.cross_attention_dim), encoder,
        make_scheduler(version), known, **PUBLISHED[version],
    )  # fmt: skip


def small_pipeline(
    vae: str | dict[str, Any],
    unet: dict[str, Any],
    image_encoder: dict[str, Any],
    version: Version = "mgt",
    categories: list[str] | None = None,
    default_steps: int = 20,
    default_guidance: float = 2.5,
) -> TryOffDiffPipeline:
    """The same design at any size, from nothing: SD's kind of UNet, a small vision transformer of SigLIP's kind.

    By the textbook: noise that keeps the variance, no quirks; pictures are cut to the photo's shape.

    Args:
        vae: folder of a trained AutoencoderKL, or the arguments of a new one.
        unet: arguments of :class:`UNet2DConditionModel`; ``sample_size`` is the square's side in latents. Channels and
            the context's width are filled in.
        image_encoder: arguments of ``SiglipVisionConfig``; ``image_size`` is filled in. It is fresh, so train it along
            (``train_encoder``).
        version: "v1", "v2" or "mgt".
        categories: as in :func:`sd14_pipeline`.
        default_steps, default_guidance: see :class:`TryOffDiffPipeline`.

    Raises:
        ValueError: a VAE that is not there, or sizes that don't fit.
    """
    codec = load_vae(vae)
    channels, factor = codec.config.latent_channels, 2 ** (len(codec.config.block_out_channels) - 1)
    if "sample_size" not in unet or "hidden_size" not in image_encoder or "patch_size" not in image_encoder:
        raise ValueError("unet needs its sample_size, image_encoder its hidden_size and patch_size")
    side, patch, width = unet["sample_size"] * factor, image_encoder["patch_size"], image_encoder["hidden_size"]
    if side % patch:
        raise ValueError(f"pictures of {side} pixels can't be cut into patches of {patch}: give another patch_size")
    network = make_unet(
        version, {"cross_attention_dim": width, "in_channels": channels, "out_channels": channels} | unet
    )
    adapter = ImageAdapter(version == "v1", (side // patch) ** 2, width=width)
    settings: dict[str, Any] = {
        "noise": "preserving", "unconditional": "features", "default_steps": default_steps,
        "default_guidance": default_guidance, "as_published": False, "cut_to_person": True,
    }  # fmt: skip
    known = categories or (list(CLASSES) if version == "mgt" else ["upper"])
    encoder = load_encoder({**image_encoder, "image_size": side})
    return TryOffDiffPipeline(codec, network, adapter, encoder, make_scheduler(version), known, **settings)
