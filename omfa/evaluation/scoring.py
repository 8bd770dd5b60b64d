"""One prediction scored: found, read, brought beside its truth as the protocol says, measured.

Nothing here decides what a table looks like; nothing is skipped without a word: a prediction that can't be scored comes
back as a problem that names the file. Legend: H W pixels, D feature width.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from omfa.components import CLOTHES, TaskKind
from omfa.evaluation import metrics
from omfa.evaluation.judges import pattern_kinds, person_outline
from omfa.evaluation.metrics import inner, masked_mean
from omfa.evaluation.pairs import Item
from omfa.evaluation.protocols import METRICS, PROTOCOLS, Filter, Pairing, Protocol
from omfa.images import SUFFIXES, ImageError, read_image
from omfa.records.labels import AREAS
from omfa.records.prepared import RecordError, resolve
from omfa.records.worn import clothes

SCORING = 3  # counts changes of what a number means; results of another count are made anew
_FILTERS = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_LIMBS = ("forearms", "shins")


@dataclass
class Score:
    """What became of an item.

    Args:
        values: metric to value; a metric without meaning here (an empty garment area, say) is left out.
        features: network to (2, D): the prediction's, the truth's.
        problem: why there are no values, naming file and cure; None where all is well.
    """

    values: dict[str, float] = field(default_factory=dict)
    features: dict[str, np.ndarray] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Scorer:
    """Everything that items are scored with.

    Args:
        records, predictions: folders.
        protocol: how pictures are brought beside each other.
        task: TRY_ON or TRY_OFF.
        pairing: unpaired predictions have no true picture: only features, and garment similarity.
        wanted: metrics to compute.
        networks: feature networks by name, on ``device``.
        kinds: whether to ask the classifier of pattern kinds.
        device: where to compute.
    """

    records: Path
    predictions: Path
    protocol: Protocol
    task: TaskKind
    pairing: Pairing
    wanted: tuple[str, ...]
    networks: Mapping[str, nn.Module]
    kinds: bool = False
    device: str = "cpu"

    @torch.no_grad()
    def score(self, item: Item) -> Score:
        """Score one item; problems are told, not raised."""
        try:
            return self._measured(item)
        except (ImageError, RecordError, LookupError) as e:
            return Score(problem=str(e))

    def _measured(self, item: Item) -> Score:
        prediction = read_prediction(self.predictions, item.key)
        truth = read_image(resolve(self.records, item.truth))
        pred, true = beside(prediction, truth, self.protocol, item.key)
        x, y = self._tensor(pred), self._tensor(true)
        original = self._tensor(truth) if self.protocol.set_truth == "original" and truth.size != true.size else y
        score = Score()
        if self.pairing == "paired":
            score.values |= self._pixels(item, x, y)
            score.values |= self._perceptual(x, y, prediction, truth)
        self._embeddings(item, x, y, original, score)
        score.values = {k: v for k, v in score.values.items() if k in self.wanted and np.isfinite(v)}
        return score

    def _tensor(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture)).to(self.device)
        return pixels.permute(2, 0, 1)[None].float() / 255

    def _pixels(self, item: Item, x: Tensor, y: Tensor) -> dict[str, float]:
        """Metrics without a network, whole and inside the true areas."""
        found: dict[str, Tensor] = {"psnr": metrics.psnr(x, y)}
        ssim = metrics.ssim_rgb_full_map(x, y)
        found["ssim_rgb_full"] = masked_mean(ssim, None)
        found["ssim_rgb_valid"] = masked_mean(inner(ssim), None)
        if "ssim_luma" in self.wanted:
            found["ssim_luma"] = metrics.ssim_luma(x, y)
        if "ms_ssim" in self.wanted and min(y.shape[-2:]) >= metrics.MS_SSIM_SMALLEST:
            found["ms_ssim"] = metrics.ms_ssim(x, y)
        masks = self._masks(item, y)
        worn = [m for c, m in masks.items() if c in set(CLOTHES)]
        areas = {"person": masks["person"]} if "person" in masks else {}
        if worn:
            areas["garment"] = torch.stack(worn).amax(0)
        for area, mask in areas.items():
            found[f"psnr_{area}"] = metrics.psnr(x, y, mask)
            found[f"ssim_rgb_valid_{area}"] = masked_mean(inner(ssim), inner(mask))
        if "garment" in areas and "lpips_alex" in self.networks and "lpips_alex_garment" in self.wanted:
            found["lpips_alex_garment"] = self.networks["lpips_alex"](x, y, areas["garment"])
        if worn and "palette_error" in self.wanted:
            found["palette_error"] = torch.stack([metrics.palette_error(x, y, m) for m in worn]).nanmean(0)
        if self.task == TaskKind.TRY_ON and "person" in masks and "silhouette_iou" in self.wanted:
            found |= self._outlines(x, y, masks)
        if self.task == TaskKind.TRY_OFF and self.kinds and worn:
            seen = pattern_kinds(x, metrics.foreground(x).float())
            true = true_pattern(item)
            found["pattern_agreement"] = metrics.pattern_agreement(seen, [true] if true else pattern_kinds(y, worn[0]))
        return {k: float(v) for k, v in found.items()}

    def _masks(self, item: Item, y: Tensor) -> dict[str, Tensor]:
        masks = truth_masks(self.records, item, (int(y.shape[-2]), int(y.shape[-1])))
        if self.task == TaskKind.TRY_OFF and item.category not in masks and item.category is not None:
            masks[item.category.value] = metrics.foreground(y)[0, 0].float().cpu()
        return {name: mask[None, None].to(self.device) for name, mask in masks.items()}

    def _outlines(self, x: Tensor, y: Tensor, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """How well the generated person's outline is the true one, both found by one network; around limbs apart."""
        outline, true = person_outline(x).float(), person_outline(y).float()
        found = {"silhouette_iou": metrics.silhouette_iou(outline, true)}
        reach = 2 * (x.shape[-2] // 24) + 1  # pixels: about a hand's length to each side
        for limb in _LIMBS:
            if limb in masks and masks[limb].any():
                around = cv2.dilate(masks[limb][0, 0].cpu().numpy(), np.ones((reach, reach)))
                where = torch.from_numpy(around)[None, None].to(x)
                found[f"silhouette_{limb}"] = metrics.silhouette_iou(outline, true, where)
        return found

    def _perceptual(self, x: Tensor, y: Tensor, prediction: Image.Image, truth: Image.Image) -> dict[str, float]:
        found = {n: float(self.networks[n](x, y)) for n in self.networks if n.startswith("lpips")}
        if "dists" in self.networks:
            if self.protocol.dists_size is not None:
                x, y = (v.to(self.device) for v in for_dists(prediction, truth, self.protocol))
            found["dists"] = float(self.networks["dists"](x, y))
        return found

    def _embeddings(self, item: Item, x: Tensor, y: Tensor, original: Tensor, score: Score) -> None:
        """Features of prediction and truth, and their cosines (unpaired: with the garments that were given)."""
        for name, cosine in (("inception", None), ("clip", "clip_i"), ("dino", "dino")):
            if name not in self.networks:
                continue
            network = self.networks[name]
            mine, true = network(x), network(original)
            score.features[name] = torch.cat((mine, true)).float().cpu().numpy()
            if cosine is not None:
                others = [true] if self.pairing == "paired" else [network(g) for g in self._given(item)]
                if others:
                    score.values[cosine] = float(torch.stack([F.cosine_similarity(mine, o) for o in others]).mean())

    def _given(self, item: Item) -> Iterator[Tensor]:
        for garment in clothes(item.donor or item.record):
            yield self._tensor(read_image(resolve(self.records, garment.path)))


def prediction_files(folder: Path, key: str) -> list[Path]:
    """Files that could be the prediction called ``key``."""
    found = [p for suffix in SUFFIXES if (p := folder / f"{key}{suffix}").is_file()]
    return found or [p for suffix in SUFFIXES if (p := folder / f"{key}{suffix.upper()}").is_file()]


def read_prediction(folder: Path, key: str) -> Image.Image:
    """The picture called ``key`` with any usual suffix.

    Raises:
        LookupError: none, or several.
        ImageError: unreadable.
    """
    found = prediction_files(folder, key)
    if not found:
        raise LookupError(
            f"{folder / key}.png: no prediction; save it there, or call omfa.predict again: it makes what is missing"
        )
    if len(found) > 1:
        raise LookupError(f"{key}: several predictions ({', '.join(p.name for p in found)}); keep one")
    return read_image(found[0])


def beside(
    prediction: Image.Image, truth: Image.Image, protocol: Protocol, name: str
) -> tuple[Image.Image, Image.Image]:
    """Both pictures at the size the protocol compares at.

    Raises:
        ImageError: a size the protocol does not bring there.
    """
    height, width = protocol.size or (truth.height, truth.width)
    if protocol.crop == "centre":
        prediction = _cut(prediction, height / width)
    truth = _to_size(truth, (width, height), protocol.truth_filter, f"{name}: the true picture", protocol)
    prediction = _to_size(prediction, (width, height), protocol.prediction_filter, f"{name}: the prediction", protocol)
    if protocol.truth_jpeg is not None:
        buffer = io.BytesIO()
        truth.save(buffer, "JPEG", quality=protocol.truth_jpeg)
        truth = Image.open(buffer).convert("RGB")
    return prediction, truth


def for_dists(prediction: Image.Image, truth: Image.Image, protocol: Protocol) -> tuple[Tensor, Tensor]:
    """Both pictures as TryOffDiff's program gives them to DISTS, (1, 3, *dists_size) in [0, 1].

    Each is shrunk from its own size, not from the one that the other metrics compare at: the prediction, cut as there,
    on 8-bit values; the truth after it has become float.
    """
    assert protocol.dists_size is not None
    height, width = protocol.size or (truth.height, truth.width)
    cut = _cut(prediction, height / width) if protocol.crop == "centre" else prediction
    x, y = (torch.from_numpy(np.array(p)).permute(2, 0, 1)[None] for p in (cut, truth))
    x, y = (F.interpolate(v, protocol.dists_size, mode="bilinear", antialias=True) for v in (x, y.float() / 255))
    return x.float() / 255, y.clamp(0, 1)


def _cut(picture: Image.Image, aspect: float) -> Image.Image:
    """The largest middle part with height / width = aspect."""
    width = min(picture.width, round(picture.height / aspect))
    height = min(picture.height, round(picture.width * aspect))
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _to_size(picture: Image.Image, size: tuple[int, int], how: Filter, name: str, protocol: Protocol) -> Image.Image:
    if picture.size == size:
        return picture
    if how == "exact":
        presets = ", ".join(p.name for p in PROTOCOLS.values() if p.prediction_filter != "exact")
        raise ImageError(
            f"{name} is {picture.height}x{picture.width} pixels, protocol {protocol.name!r} compares at "
            f"{size[1]}x{size[0]}: save it at that size, or choose a --protocol that resizes ({presets})"
        )
    return picture.resize(size, _FILTERS[how])


def true_pattern(item: Item) -> str | None:
    """The kind of pattern the record says its garment has."""
    garments = item.record.provenance.get("garments")
    said = garments.get(str(item.category)) if isinstance(garments, dict) else None
    kind = said.get("pattern") if isinstance(said, dict) else None
    return kind if isinstance(kind, str) else None


def label_files(item: Item) -> dict[str, str]:
    """What :func:`truth_masks` reads: kind of map (or the category whose mask it is) to path."""
    if item.garment is not None:
        return {} if item.garment.mask is None else {item.garment.category.value: item.garment.mask}
    maps = {} if item.record.maps is None else vars(item.record.maps)
    return {kind: maps[kind] for kind in AREAS if maps.get(kind) is not None}


def truth_masks(records: Path, item: Item, size: tuple[int, int]) -> dict[str, Tensor]:
    """Where the truth shows what: masks (H, W) of 0 and 1, as far as the record names them.

    For try-on "person", each category worn, "forearms" and "shins", out of the record's maps
    (``omfa.records.labels.AREAS``); for try-off the category, out of the garment's own mask.

    Raises:
        RecordError, ImageError: a file that is named but can't be read.
    """
    read = {kind: _read_labels(resolve(records, path), size) for kind, path in label_files(item).items()}
    if item.category is not None:
        return {kind: torch.from_numpy(mask > 127).float() for kind, mask in read.items()}
    found: dict[str, Tensor] = {}
    for kind, labels in read.items():
        found |= {area: torch.from_numpy(np.isin(labels, values)).float() for area, values in AREAS[kind].items()}
    return {name: mask for name, mask in found.items() if mask.any()}


def _read_labels(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A grey label picture (H, W) uint8, brought to ``size`` without mixing labels."""
    try:
        labels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error):
        labels = None
    if labels is None:
        raise ImageError(f"{path}: missing or damaged; prepare the record again")
    if labels.shape == size:
        return labels
    return cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def needed_networks(wanted: tuple[str, ...]) -> list[str]:
    """The feature networks these metrics need, each once."""
    return list(dict.fromkeys(n for m in wanted if (n := METRICS[m].network) is not None))
