"""Train the network that says how far garments reach on a body in a photo, on records of the synthetic wardrobe.

    python -m data_prep.standings.cloth_reach --records data/wardrobe --out omfa/assets/cloth_reach.safetensors

Records of split "train" are learned from, those of split "test" are held out. How far a garment reaches is known from
its cut; the photo is carried over to a body at ease, where known. The garment's shop picture is never looked at.

Legend: B batch, N photos, C = 3 categories, h w what the network sees.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from data_prep.judges.training import fit, save_half
from data_prep.run import one_thread
from data_prep.wardrobe.cuts import Cut
from data_prep.wardrobe.dressing import pose_body
from data_prep.wardrobe.garment_meshes import make_garment
from data_prep.wardrobe.tailor import tailor
from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.predicted_standing import KINDS, ReachNet, at_ease
from omfa.bodies.standing import shop_pose
from omfa.images import read_image
from omfa.records.prepared import Record, RecordError, read_records, resolve

Array = NDArray[Any]

ROBUST = 0.03  # metres: errors beyond count by their size, not its square


class Examples(NamedTuple):
    """seen (N, 8, h, w) int8, 127 is 1; reach (N, C, 3) metres, NaN where a category is not worn."""

    seen: Tensor
    reach: Tensor


@lru_cache(maxsize=64)
def reach_of(cut: Cut) -> tuple[float, float, float]:
    """Metres from the pelvis of the template body at ease: the garment's top and bottom (downwards), half its width."""
    t = tailor()
    nobody = np.zeros_like(t.template)
    points = make_garment(cut, nobody, 0.0).posed(pose_body(nobody, t.joints, shop_pose())) - t.body.rest_joints[0]
    return float(points[:, 1].min()), float(points[:, 1].max()), float(np.ptp(points[:, 0]) / 2)


def example(record: Record, folder: Path) -> tuple[Array, Array]:
    """One line of Examples.

    Raises:
        RecordError: a record without body parameters or cuts.
    """
    cuts = record.provenance.get("garments")
    if record.pose is None or record.pose.params is None or not cuts:
        raise RecordError(f"{record.id}: no body or no cuts; give records of 'python -m data_prep synthetic'")
    photo = torch.from_numpy(np.array(read_image(resolve(folder, record.file_name)))).permute(2, 0, 1) / 127.5 - 1
    seen = at_ease(photo, BodyParameters.load(resolve(folder, record.pose.params)), load_body())
    reach = np.full((len(KINDS), 3), np.nan)
    for category, said in cuts.items():
        reach[KINDS.index(category)] = reach_of(Cut(**said["cut"]))
    return (seen * 127).round().clamp(-127, 127).to(torch.int8).numpy(), reach


def examples(folder: Path, records: Sequence[Record], workers: int) -> Examples:
    """Photos carried over to a body at ease, and how far their garments reach."""
    with one_thread(), ProcessPoolExecutor(workers) as pool:
        work = pool.map(partial(example, folder=folder), records, chunksize=8)
        seen, reach = zip(*tqdm(work, total=len(records), disable=None), strict=True)
    return Examples(torch.from_numpy(np.stack(seen)), torch.from_numpy(np.stack(reach)).float())


def vary(seen: Tensor, generator: torch.Generator) -> Tensor:
    """What ReachNet is to see, (B, 8, h, w) of (B, 8, h, w) int8: mirrored, recoloured, grained, with holes."""
    count, (height, width) = len(seen), seen.shape[-2:]

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    x = seen.float() / 127
    x = torch.where(rand(1, 1, 1) < 0.5, x.flip(-1), x)
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    order = torch.where(rand(1) < 0.4, order, torch.arange(3))
    known = x[:, [3, 7]]
    hole = (rand(2, 1, 1) < 0.2) & ((torch.arange(height)[:, None] - height * rand(1, 1, 1)).abs() < 6 * rand(1, 1, 1))
    known = known * ~hole
    sides = []
    for k in (0, 1):
        colour = torch.gather(x[:, 4 * k : 4 * k + 3], 1, order[:, :, None, None].expand(-1, -1, height, width))
        colour = colour * (0.8 + 0.4 * rand(1, 1, 1)) + 0.3 * (rand(3, 1, 1) - 0.5)
        colour = colour + 0.15 * rand(1, 1, 1) ** 2 * torch.randn(colour.shape, generator=generator)
        sides += [colour.clamp(-1, 1) * known[:, k : k + 1], known[:, k : k + 1]]
    return torch.cat(sides, 1)


def train(data: Examples, steps: int, seed: int = 0, batch: int = 32) -> ReachNet:
    """A network fitted with the robust error of what is worn."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, worn = ReachNet(), ~data.reach.isnan()
    net.mean.copy_(data.reach.nanmean(0).nan_to_num())  # type: ignore[operator]
    spread = (data.reach - net.mean).square().nanmean(0).sqrt()  # type: ignore[operator]
    net.spread.copy_(spread.nan_to_num().clamp_min(0.01))  # type: ignore[operator]

    def losses() -> Iterator[Tensor]:
        for _ in range(steps):
            ids = torch.randint(len(data.seen), (batch,), generator=generator)
            off = net(vary(data.seen[ids], generator)) - data.reach[ids].nan_to_num()
            robust = ROBUST * ((1 + (off / ROBUST).square()).sqrt() - 1)
            yield 100 * (robust * worn[ids]).sum() / worn[ids].sum()

    fit(net, losses(), steps, rate=3e-3, weight_decay=0.03)
    return net


@torch.no_grad()
def report(net: ReachNet, data: Examples) -> float:
    """Print the error in centimetres by category, beside the mean's; the mean of the errors."""
    found = torch.cat([net(s.float() / 127) for s in data.seen.split(64)])
    off, guess = ((f - data.reach).abs() * 100 for f in (found, net.mean[None]))  # type: ignore[index]
    print(f"{'cm':6} {'top':>12} {'bottom':>12} {'half width':>12}  (in brackets: always the mean)")
    for k, kind in enumerate(KINDS):
        cells = [f"{a:5.2f} ({b:5.2f})" for a, b in zip(off[:, k].nanmean(0), guess[:, k].nanmean(0), strict=True)]
        print(f"{kind:6} " + " ".join(cells))
    return float(off.nanmean())


def main(argv: Sequence[str] | None = None) -> int:
    """Read, train, report, save half-precision weights."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.standings.cloth_reach", description=__doc__)
    parser.add_argument("--records", type=Path, required=True, metavar="DIR", help="of 'data_prep synthetic'")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights, .safetensors")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    records = read_records(args.records)
    learn, held_out = ([r for r in records if r.split == s] for s in ("train", "test"))
    net = train(examples(args.records, learn, args.workers), args.steps)
    report(net, examples(args.records, held_out, args.workers))
    save_half(net, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
