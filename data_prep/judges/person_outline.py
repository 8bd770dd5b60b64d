"""Train the outline network of ``omfa.evaluation.judges`` on records of the synthetic wardrobe.

    python -m data_prep.judges.person_outline --records data/wardrobe --out omfa/assets/person_outline.safetensors

Records of split "train" are learned from, those of split "test" are held out. In training, pictures are mirrored,
recoloured, blurred, stained and grained: a model that is still learning makes such pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data_prep.judges.training import fit, save_half
from omfa.evaluation.judges import HEIGHT, OutlineNet
from omfa.records.labels import PERSON
from omfa.records.prepared import Record, RecordError, read_records, resolve

SIZE = (HEIGHT, HEIGHT * 3 // 4)


def read(folder: Path, records: Sequence[Record]) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, h, w) and outlines (N, 1, h, w), uint8, of records that name their label pictures.

    Raises:
        RecordError: a record without labels.
    """
    pictures, outlines = [], []
    for record in tqdm(records, desc="reading", disable=None):
        if record.maps is None or record.maps.labels is None:
            raise RecordError(f"{record.id}: no label picture; give records of 'python -m data_prep synthetic'")
        rgb = np.asarray(Image.open(resolve(folder, record.file_name)).convert("RGB"))
        labels = np.asarray(Image.open(resolve(folder, record.maps.labels)).convert("L"))
        person = np.isin(labels, PERSON).astype(np.uint8) * 255
        small = [cv2.resize(p, SIZE[::-1], interpolation=cv2.INTER_AREA) for p in (rgb, person)]
        pictures.append(torch.from_numpy(small[0]).permute(2, 0, 1))
        outlines.append(torch.from_numpy(small[1])[None])
    return torch.stack(pictures), torch.stack(outlines)


def vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, h, w) in [-1, 1] recoloured, blurred, stained and grained at random."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(len(x))])
    x = torch.where(rand(len(x), 1, 1, 1) < 0.5, torch.gather(x, 1, order[:, :, None, None].expand_as(x)), x)
    blurred = []
    for picture, factor in zip(x, (1 + 5 * rand(len(x)).square()).tolist(), strict=True):
        size = [max(1, round(n / factor)) for n in x.shape[-2:]]
        small = F.interpolate(picture[None], size, mode="bilinear", antialias=True)
        blurred.append(F.interpolate(small, x.shape[-2:], mode="bicubic"))
    stains = F.interpolate(torch.randn(len(x), 3, 16, 12, generator=generator), x.shape[-2:], mode="bicubic")
    grain = torch.randn(x.shape, generator=generator)
    x = torch.cat(blurred) + 0.2 * rand(len(x), 1, 1, 1).square() * stains + 0.05 * rand(len(x), 1, 1, 1) * grain
    return (x * (0.8 + 0.4 * rand(len(x), 1, 1, 1)) + 0.2 * (rand(len(x), 3, 1, 1) - 0.5)).clamp(-1, 1)


def train(pictures: Tensor, outlines: Tensor, steps: int, seed: int = 0, batch: int = 16) -> OutlineNet:
    """A network fitted with cross entropy and soft IoU."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net = OutlineNet()

    def losses() -> Iterator[Tensor]:
        for step in range(steps):
            ids = torch.randint(len(pictures), (batch,), generator=generator)
            x, y = pictures[ids].float() / 127.5 - 1, outlines[ids].float() / 255
            if step % 2:
                x, y = x.flip(-1), y.flip(-1)
            logits = net(vary(x, generator))
            p = logits.sigmoid()
            overlap = (p * y).sum((1, 2, 3)) / (p + y - p * y).sum((1, 2, 3)).clamp(min=1)
            yield F.binary_cross_entropy_with_logits(logits, y) + (1 - overlap).mean()

    fit(net, losses(), steps, rate=5e-3, weight_decay=0.01)
    return net


@torch.no_grad()
def report(net: OutlineNet, pictures: Tensor, outlines: Tensor) -> float:
    """Print and return the mean IoU; also for the same pictures blurred and stained."""
    generator = torch.Generator().manual_seed(0)
    scores: list[list[float]] = [[], []]
    for p, o in zip(pictures.split(64), outlines.split(64), strict=True):
        x, true = p.float() / 127.5 - 1, o > 127
        for into, seen in zip(scores, (x, vary(x, generator)), strict=True):
            found = net(seen) > 0
            into += ((found & true).sum((1, 2, 3)) / (found | true).sum((1, 2, 3)).clamp(min=1)).tolist()
    clean, varied = (float(np.mean(s)) for s in scores)
    print(f"IoU {clean:.4f} on {len(pictures)} held-out pictures, {varied:.4f} blurred and stained")
    return clean


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, report, save half-precision weights."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.judges.person_outline", description=__doc__)
    parser.add_argument("--records", type=Path, required=True, metavar="DIR", help="of 'data_prep synthetic'")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights, .safetensors")
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args(argv)
    records = read_records(args.records)
    net = train(*read(args.records, [r for r in records if r.split == "train"]), args.steps)
    report(net, *read(args.records, [r for r in records if r.split == "test"]))
    save_half(net, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
