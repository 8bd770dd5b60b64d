"""Evaluation protocols: what is compared with what, at which size, by which metrics. Fixed, so that tables can be.

A protocol is data. Numbers made under different protocols are different quantities, whatever the metric is called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omfa.components import TaskKind

Filter = Literal["exact", "bilinear", "bicubic", "lanczos"]
Pairing = Literal["paired", "unpaired"]


@dataclass(frozen=True)
class Metric:
    """One column of the table.

    Args:
        name: key in the results.
        label: for people; says variant and scale.
        better: which way is better.
        network: the feature network it needs (a key of ``omfa.evaluation.learned_metrics.NEEDS``), or None.
        of_set: compares two sets of pictures, not picture by picture.
        scale: the label's numbers are the raw ones times this.
        digits: after the point, in tables.
    """

    name: str
    label: str
    better: Literal["higher", "lower"]
    network: str | None = None
    of_set: bool = False
    scale: float = 1.0
    digits: int = 3

    def text(self, value: float, sign: str = "") -> str:
        """A raw value as tables show it; ``sign`` "+" for differences."""
        return f"{value * self.scale:{sign}.{self.digits}f}"


METRICS = {
    m.name: m
    for m in (
        Metric("psnr", "PSNR dB", "higher", digits=2),
        Metric("psnr_garment", "PSNR dB, garment area", "higher", digits=2),
        Metric("psnr_person", "PSNR dB, person area", "higher", digits=2),
        Metric("ssim_rgb_full", "SSIM (RGB, reflected edges, torchmetrics)", "higher"),
        Metric("ssim_rgb_valid", "SSIM (RGB, valid window)", "higher"),
        Metric("ssim_rgb_valid_garment", "SSIM (RGB, valid), garment area", "higher"),
        Metric("ssim_rgb_valid_person", "SSIM (RGB, valid), person area", "higher"),
        Metric("ssim_luma", "SSIM (luma, pyiqa)", "higher"),
        Metric("ms_ssim", "MS-SSIM (RGB)", "higher"),
        Metric("lpips_alex", "LPIPS (alex)", "lower", "lpips_alex"),
        Metric("lpips_vgg", "LPIPS (vgg)", "lower", "lpips_vgg"),
        Metric("lpips_squeeze", "LPIPS (squeeze)", "lower", "lpips_squeeze"),
        Metric("lpips_alex_garment", "LPIPS (alex), garment area", "lower", "lpips_alex"),
        Metric("dists", "DISTS", "lower", "dists"),
        Metric("palette_error", "palette error (CIEDE2000), garment area", "lower", digits=2),
        Metric("pattern_agreement", "pattern kind right", "higher"),
        Metric("silhouette_iou", "outline IoU, person (one network on both)", "higher"),
        Metric("silhouette_forearms", "outline IoU, around forearms", "higher"),
        Metric("silhouette_shins", "outline IoU, around shins", "higher"),
        Metric("clip_i", "CLIP-I (ViT-B/32, middle square)", "higher", "clip"),
        Metric("dino", "DINO similarity (ViT-S/16, middle square)", "higher", "dino"),
        Metric("fid", "FID (clean)", "lower", "inception", of_set=True, digits=2),
        Metric("kid", "KID x 1000 (clean, whole sets)", "lower", "inception", of_set=True, scale=1000.0),
        Metric("clip_fid", "CLIP-FID", "lower", "clip", of_set=True, digits=2),
    )
}
NOT_DONE = {"gpt_score": "the OMFA paper's GPT-4o-mini score: deliberately absent, since nobody can reproduce it"}


@dataclass(frozen=True)
class Protocol:
    """How predictions are brought beside the truth.

    Args:
        name: of the preset.
        source: whose numbers it stands beside, and what is known of how they were made.
        task: try_on, try_off, or None for either.
        pairing: paired (a true picture exists) or unpaired, or None for either.
        size: (height, width) both pictures are compared at; None: the truth's own size.
        truth_filter: how the truth is brought to ``size``; "exact" refuses another size.
        prediction_filter: how a prediction is; "exact" refuses another size.
        crop: "centre" first cuts a prediction to the aspect of ``size`` (square outputs of a portrait model).
        truth_jpeg: quality the truth is saved with before it is compared, as some scripts do; None: untouched.
        set_truth: FID and KID see the truth in its original size or as resized.
        dists_size: (height, width) for DISTS alone, see ``omfa.evaluation.scoring.for_dists``; None: ``size``.
        metrics: the columns; None: all that can be had.

    Raises:
        ValueError: a metric nobody knows, or filters that contradict the size.
    """

    name: str
    source: str
    task: TaskKind | None = None
    pairing: Pairing | None = None
    size: tuple[int, int] | None = None
    truth_filter: Filter = "exact"
    prediction_filter: Filter = "exact"
    crop: Literal["none", "centre"] = "none"
    truth_jpeg: int | None = None
    set_truth: Literal["original", "resized"] = "original"
    dists_size: tuple[int, int] | None = None
    metrics: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.metrics or ()) - set(METRICS)
        if unknown:
            raise ValueError(f"unknown metrics {sorted(unknown)}; there are {', '.join(METRICS)}")
        if self.size is None and (self.truth_filter, self.prediction_filter, self.crop) != ("exact", "exact", "none"):
            raise ValueError("size=None compares at the truth's own size: nothing is resized or cut")


_ON, _OFF = TaskKind.TRY_ON, TaskKind.TRY_OFF
_OMFA = "OMFA, arXiv 2508.04559, 768x1024; its SSIM and LPIPS variants are not stated: torchmetrics' and alex assumed"
_UNPAIRED = ("fid", "kid", "clip_i", "dino")

PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("records", "the records' own size, nothing resized, every metric; for any task"),
        Protocol(
            "wardrobe", "the synthetic wardrobe at 256x192, predictions of another size enlarged or reduced (bicubic), "
            "so that models that grow stay comparable; every metric", size=(256, 192), prediction_filter="bicubic",
        ),
        Protocol(
            "omfa-vitonhd-paired", _OMFA, _ON, "paired", (1024, 768), "lanczos",
            metrics=("ssim_rgb_full", "lpips_alex", "fid", "kid"),
        ),
        Protocol("omfa-vitonhd-unpaired", _OMFA, _ON, "unpaired", (1024, 768), "lanczos", metrics=_UNPAIRED),
        Protocol(
            "omfa-deepfashion-multipose", _OMFA + "; DeepFashion-MultiModal pictures are 1101x750, resized",
            _ON, "paired", (1024, 768), "lanczos", metrics=("ssim_rgb_full", "lpips_alex", *_UNPAIRED),
        ),
        Protocol(
            "omfa-vitonhd-tryoff", _OMFA + "; numbers quoted in TEMU-VTOFF's table", _OFF, "paired", (1024, 768),
            "lanczos", metrics=("ssim_rgb_full", "lpips_alex", "dists", "fid", "kid"),
        ),
        Protocol(
            "tryoffdiff", "TryOffDiff: square outputs cut to 3:4, luma SSIM and alex by pyiqa, DISTS at 341x256, "
            "FID, CLIP-FID and KID (raw there, x 1000 here) against the original pictures; PNG. Ours: pictures of "
            "another size are brought to 1024x768 as 8-bit values, bicubic (there the truth in float); DISTS is a mean "
            "over pictures (there of the means of batches); CW-SSIM is absent",
            _OFF, "paired", (1024, 768), "bicubic", "bicubic", "centre", dists_size=(341, 256),
            metrics=("ssim_luma", "ms_ssim", "lpips_alex", "dists", "fid", "clip_fid", "kid"),
        ),
        Protocol(
            "ladi-vton", "LaDI-VTON, OOTDiffusion: 512x384, torchmetrics SSIM and alex (torchmetrics 0.11.4 cut the "
            "border: ssim_rgb_valid is that number), clean-fid against the original pictures, KID raw there",
            _ON, None, (512, 384), "bicubic", metrics=("ssim_rgb_valid", "ssim_rgb_full", "lpips_alex", "fid", "kid"),
        ),
        Protocol(
            "catvton", "CatVTON, FastFit, RefTon: 512x384, truth LANCZOS and saved as JPEG q75, LPIPS is SqueezeNet's, "
            "FID and KID against the resized truth; say whether predictions were repainted",
            _ON, None, (512, 384), "lanczos", truth_jpeg=75, set_truth="resized",
            metrics=("ssim_rgb_full", "lpips_squeeze", "fid", "kid"),
        ),
        Protocol(
            "temu-vtoff", "TEMU-VTOFF: truth LANCZOS to 1024x768, DISTS at that size, torchmetrics SSIM, alex; its "
            "pytorch-fid columns are not computed here", _OFF, "paired", (1024, 768), "lanczos", set_truth="resized",
            metrics=("ssim_rgb_full", "lpips_alex", "dists", "fid", "kid"),
        ),
    )
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """The preset of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
