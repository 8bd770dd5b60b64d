"""Train the pattern network of ``omfa.evaluation.judges`` on shop pictures made on the fly.

    python -m data_prep.judges.pattern_kind --out omfa/assets/pattern_kind.safetensors --pictures 6000 --workers 2

Garments of seed 10,000 are learned from, those of seed 20,000 are held out; the rest of the project uses other seeds.
Colours are permuted and blurred in training: the kind of a pattern does not depend on them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data_prep.judges.training import fit, save_half
from data_prep.run import one_thread
from data_prep.wardrobe.outfits import draw_outfit
from data_prep.wardrobe.views import shop_picture
from omfa.evaluation.judges import KINDS, PatternNet, garment_crops

LEARN, HELD_OUT = 10_000, 20_000


def example(index: int, seed: int, size: tuple[int, int]) -> tuple[np.ndarray, int]:
    """(3, S, S) uint8 crop of a garment of the outfit ``index`` and its kind."""
    rng = np.random.default_rng([seed, 2, index])
    worn = draw_outfit(rng).worn
    garment = worn[index % len(worn)]
    picture, mask, _ = shop_picture(garment, size)
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    crop = (garment_crops(image, torch.from_numpy(mask)[None, None])[0] + 1) * 127.5
    return crop.round().byte().numpy(), KINDS.index(garment.pattern.kind)


def examples(seed: int, count: int, workers: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(N, 3, S, S) uint8 crops and (N,) kinds."""
    work = partial(example, seed=seed, size=size)
    with one_thread(), ProcessPoolExecutor(workers) as pool:
        done = list(tqdm(pool.map(work, range(count), chunksize=16), total=count, disable=None))
    return torch.from_numpy(np.stack([d[0] for d in done])), torch.tensor([d[1] for d in done])


def vary(x: Tensor, generator: torch.Generator) -> Tensor:
    """Crops (B, 3, S, S) in [-1, 1] mirrored, shifted, recoloured, blurred and grained at random."""

    def chance(p: float) -> Tensor:
        return torch.rand(len(x), 1, 1, 1, generator=generator) < p

    x = torch.where(chance(0.5), x.flip(3), x)
    dy, dx = torch.randint(-4, 5, (2,), generator=generator).tolist()
    x = x.roll((dy, dx), (2, 3))
    white = (x > 0.98).all(1, keepdim=True)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(len(x))])
    y = torch.gather(x, 1, order[:, :, None, None].expand_as(x))
    y = y * (0.75 + 0.3 * torch.rand(len(x), 1, 1, 1, generator=generator))
    y = torch.where(chance(0.3), F.avg_pool2d(y, 3, 1, 1), y)
    y = y + 0.06 * torch.randn(y.shape, generator=generator) * chance(0.5)
    return torch.where(white, x, y)


def train(pictures: Tensor, kinds: Tensor, epochs: int, seed: int = 0) -> PatternNet:
    """A network fitted with cross entropy."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, batch = PatternNet(), 64
    whole = len(pictures) // batch

    def losses() -> Iterator[Tensor]:
        for _ in range(epochs):
            order = torch.randperm(len(pictures), generator=generator)
            for ids in order[: whole * batch].view(-1, batch):
                x = vary(pictures[ids].float() / 127.5 - 1, generator)
                yield F.cross_entropy(net(x), kinds[ids], label_smoothing=0.03)

    fit(net, losses(), epochs * whole, rate=4e-3, weight_decay=0.02)
    return net


@torch.no_grad()
def report(net: PatternNet, pictures: Tensor, kinds: Tensor) -> float:
    """Print the accuracy and the table of confusions; the accuracy."""
    guess = torch.cat([net(p.float() / 127.5 - 1).argmax(1) for p in pictures.split(256)])
    table = torch.zeros(len(KINDS), len(KINDS), dtype=torch.long)
    table.index_put_((kinds, guess), torch.ones(len(kinds), dtype=torch.long), accumulate=True)
    accuracy = float((guess == kinds).float().mean())
    print(f"accuracy {accuracy:.4f} on {len(kinds)} held-out pictures; rows are true, columns guessed")
    print(f"{'':9}" + " ".join(f"{k[:6]:>6}" for k in KINDS))
    for kind, row in zip(KINDS, table.tolist(), strict=True):
        print(f"{kind:9}" + " ".join(f"{n:6d}" for n in row))
    return accuracy


def main(argv: Sequence[str] | None = None) -> int:
    """Make pictures, train, report, save half-precision weights."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.judges.pattern_kind", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights, .safetensors")
    parser.add_argument("--pictures", type=int, default=6000, metavar="N", help="to learn from (default 6000)")
    parser.add_argument("--held-out", type=int, default=1000, metavar="N", help="to test on (default 1000)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    pictures, kinds = examples(LEARN, args.pictures, args.workers, (192, 144))
    net = train(pictures, kinds, args.epochs)
    report(net, *examples(HELD_OUT, args.held_out, args.workers, (256, 192)))
    save_half(net, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
