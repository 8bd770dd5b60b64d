"""Train the network that says how a body stands in a garment picture, on shop pictures made on the fly.

    python -m data_prep.standings.garment_standing --out omfa/assets/standing.safetensors --pictures 6000 --workers 2

Garments of seed 30,000 are learned from, those of seed 40,000 are held out; the rest of the project uses other seeds.
In training, arms hang from nearly level to nearly straight down, and pictures are stretched, recoloured, shaded,
grained, compressed and cut wrongly: real shop pictures are not rendered.

Legend: B batch, N pictures, P = 96 side of what is kept of a picture, S side of what the network sees, J joints.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data_prep.judges.training import fit, save_half
from data_prep.run import one_thread
from data_prep.wardrobe.outfits import Worn, draw_outfit
from data_prep.wardrobe.views import Shop, hang, shop_picture
from omfa.bodies.body import Body, load_body
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import MODEL_TO_CAMERA, camera, project, turn_about
from omfa.bodies.predicted_standing import FILL, KINDS, SIDE, Stand, StandNet, find_stand
from omfa.bodies.standing import FOV, PITCH, shop_pose, standing

Array = NDArray[Any]

LEARN, HELD_OUT = 30_000, 40_000
KEPT = 96
JOINTS = (0, 1, 2, 4, 5, 7, 8, 9, 12, 16, 17, 18, 19, 20, 21)  # pelvis, legs, chest, neck, arms
MIRROR = [JOINTS.index(j) for j in (0, 2, 1, 5, 4, 8, 7, 9, 12, 17, 16, 19, 18, 21, 20)]
ASIDE = 0.1  # weight of a joint that does not lie on the garment
ROBUST = 0.02  # of the square: errors beyond count by their size, not its square


class Examples(NamedTuple):
    """Shop pictures, each with the square that the network would see of it; places are in squares, from the middle.

    pictures (N, 4, P, P) uint8: 255 - RGB, and the garment; joints (N, J, 2); on (N, J) whether they lie on the
    garment; height (N,) of the whole picture; stands (N, 6), scale as log; kinds (N,) of KINDS.
    """

    pictures: Tensor
    joints: Tensor
    on: Tensor
    height: Tensor
    stands: Tensor
    kinds: Tensor


# ---------------------------------------------------------------------------------------------------- pictures


def drawn(seed: int, index: int) -> tuple[Worn, np.random.Generator]:
    """A garment of the outfit ``index``, and what draws how it hangs."""
    rng = np.random.default_rng([seed, 2, index])
    worn = draw_outfit(rng).worn
    return worn[index % len(worn)], rng


def widely(worn: Worn, size: tuple[int, int], rng: np.random.Generator) -> Shop:
    """A shop picture (H, W) of a body that stands in more ways than the wardrobe's own."""
    pose = shop_pose(
        rng.uniform(18, 86), rng.uniform(-1, 7), yaw=float(rng.normal(0, 5)), pitch=float(rng.normal(3, 2))
    )
    pose[18:20, 1] *= rng.uniform(0, 4)
    fov, margin = float(rng.uniform(9, 20)), float(rng.uniform(0.03, 0.11))
    return hang(worn, size, pose, fov, margin, rng.uniform(-0.02, 0.02, 2))


def joints_in(body: Body, params: BodyParameters) -> Array:
    """(J, 2) pixels."""
    return project(body.posed(params).joints[0].cpu().numpy()[list(JOINTS)], params.K)


def on_garment(joints: Array, mask: Array, reach: int) -> Array:
    """(J,) bool: joints (J, 2) that lie on a mask (H, W), or within ``reach`` pixels of it."""
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    x, y = joints.round().astype(int).T
    inside = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return inside & (grown[y.clip(0, mask.shape[0] - 1), x.clip(0, mask.shape[1] - 1)] > 0)


def example(index: int, seed: int, size: tuple[int, int]) -> tuple[Array, ...]:
    """One line of Examples."""
    worn, rng = drawn(seed, index)
    return squared(widely(worn, size, rng), KINDS.index(worn.category.value))


def squared(shop: Shop, kind: int) -> tuple[Array, ...]:
    """A shop picture as a line of Examples."""
    body, size = load_body(), shop.mask.shape
    rows, columns = np.nonzero(shop.mask.any(1))[0], np.nonzero(shop.mask.any(0))[0]
    middle = np.array([columns[0] + columns[-1], rows[0] + rows[-1]]) / 2
    side = max(np.ptp(columns), np.ptp(rows)) / FILL  # of the network's square; a wider one is kept
    factor, small = SIDE / side, np.dstack([255 - shop.picture, shop.mask.astype(np.uint8) * 255])
    small = cv2.resize(
        small, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    )
    shrunk = np.array(small.shape[1::-1]) / size[::-1]
    move = np.zeros((2, 3))
    move[:, :2], move[:, 2] = np.diag(factor / shrunk), KEPT / 2 - 0.5 - factor * (middle + 0.5 - 0.5 / shrunk)
    kept = cv2.warpAffine(small, move, (KEPT, KEPT))
    joints, stand = joints_in(body, shop.params), Stand.of(body, shop.params)
    height = size[0] / side
    place = (np.array([stand.x, stand.y]) * size[0] + np.array(size[::-1]) / 2 - 0.5 - middle) / side
    numbers = [stand.arms, stand.legs, stand.yaw, np.log(stand.scale * height), *place]
    return (
        kept.transpose(2, 0, 1), (joints - middle) / side, on_garment(joints, shop.mask, size[0] // 60),
        np.array(height), np.array(numbers), np.array(kind),
    )  # fmt: skip


def examples(seed: int, count: int, workers: int, size: tuple[int, int] = (192, 144)) -> Examples:
    """So many shop pictures."""
    work = partial(example, seed=seed, size=size)
    with one_thread(), ProcessPoolExecutor(workers) as pool:
        done = list(tqdm(pool.map(work, range(count), chunksize=16), total=count, disable=None))
    pictures, joints, on, height, stands, kinds = (torch.from_numpy(np.stack(c)) for c in zip(*done, strict=True))
    return Examples(pictures, joints.float(), on, height.float(), stands.float(), kinds.long())


# ---------------------------------------------------------------------------------------------------- variations


def vary(pictures: Tensor, joints: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """What StandNet is to see: (B, 3, S, S), the joints (B, J, 2) there, and by how much all is larger (B,).

    Args:
        pictures: (B, 4, P, P) uint8 of Examples.
        joints: (B, J, 2) of Examples.
        generator: draws everything.
    """
    count = len(pictures)

    def rand(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    def randn(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    # cut: mostly around the garment, sometimes around the whole picture
    loose = rand() < 0.25
    zoom = torch.where(loose, 0.5 + 0.5 * rand(), (0.03 * randn()).exp())
    shift = torch.where(loose[:, None], 0.12 * (rand(2) - 0.5), 0.015 * randn(2))
    stretch = (0.2 * (rand(2) - 0.5)).exp()
    grown = zoom[:, None] * stretch
    flip = torch.where(rand() < 0.5, -1.0, 1.0)
    theta, share = torch.zeros(count, 2, 3), SIDE / KEPT
    theta[:, 0, 0], theta[:, 1, 1] = flip / grown[:, 0] * share, 1 / grown[:, 1] * share
    theta[:, :, 2] = -2 * shift / grown * torch.stack([flip, torch.ones_like(flip)], 1) * share
    grid = F.affine_grid(theta, [count, 4, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(pictures.float() / 127.5, grid, align_corners=False)
    mirrored = torch.where(flip[:, None, None] < 0, joints[:, MIRROR] * joints.new_tensor([-1, 1]), joints)
    at = mirrored * grown[:, None] + shift[:, None]

    # colours, paper, shadow
    dark, mask = moved[:, :3], moved[:, 3:] / 2
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(count)])
    dark = torch.gather(dark, 1, order[:, :, None, None].expand_as(dark))
    light = 0.9 + 0.25 * rand(1, 1, 1)
    dark = torch.where(rand(1, 1, 1) < 0.15, 0.3 * dark + 0.02 * mask, dark * light)  # nearly white cloth
    spread = F.avg_pool2d(mask, 9, 1, 4)
    shadow = spread.roll((int(torch.randint(-2, 6, (), generator=generator)), 2), (2, 3)) * (1 - mask)
    grey = 0.16 * rand(1, 1, 1) * (rand(1, 1, 1) < 0.5)  # of the paper: white cloth is lighter than that
    x = grey * mask - dark - 0.35 * rand(1, 1, 1) * (rand(1, 1, 1) < 0.5) * shadow
    slope = torch.linspace(-1, 1, SIDE)[:, None] * 0.08 * randn(1, 1, 1) * (rand(1, 1, 1) < 0.2)
    x = x + slope * (1 - mask)
    x = torch.where(rand(1, 1, 1) < 0.3, F.avg_pool2d(x, 3, 1, 1), x)
    x = x + 0.08 * rand(1, 1, 1) ** 2 * randn(3, SIDE, SIDE) + 0.02 * randn(3, 1, 1)
    pressed = [_compressed(p, float(q)) if q > 0.5 else p for p, q in zip(x, rand(), strict=True)]
    return torch.stack(pressed), at, zoom


def _compressed(x: Tensor, draw: float) -> Tensor:
    """A picture (3, S, S) through JPEG; ``draw`` in (0.5, 1): the larger, the worse."""
    rgb = ((x + 1).clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).numpy()
    _, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, int(150 - 120 * draw)])
    return torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR)).permute(2, 0, 1).float() / 127.5 - 2


# ---------------------------------------------------------------------------------------------------- joints of a stand


class Joints(torch.nn.Module):
    """Where a Stand's joints are, differentiably; the pose is linear in arms and legs."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        zero = shop_pose(0, 0)
        self.poses = torch.tensor(np.stack([zero, shop_pose(1, 0) - zero, shop_pose(0, 1) - zero]), dtype=torch.float32)
        self.poses[:, 0] = 0
        self.tilt = torch.tensor(turn_about("x", PITCH) @ MODEL_TO_CAMERA, dtype=torch.float32)
        self.pelvis = torch.tensor(body.rest_joints[0])

    def forward(self, stands: Tensor, height: Tensor) -> Tensor:
        """(B, J, 2) in squares of stands (B, 6) in squares; height (B,) of the whole picture, for the camera."""
        arms, legs, yaw, log_scale, x, y = stands.unbind(1)
        pose = self.poses[0] + arms[:, None, None] * self.poses[1] + legs[:, None, None] * self.poses[2]
        zero = torch.zeros(len(pose), 10)
        points = self.body.joints_only(zero, zero, pose)[:, list(JOINTS)] - self.pelvis
        c, s, o, i = yaw.deg2rad().cos(), yaw.deg2rad().sin(), torch.zeros_like(yaw), torch.ones_like(yaw)
        turn = torch.stack([c, o, s, o, i, o, -s, o, c], 1).unflatten(1, (3, 3))
        points = points @ (self.tilt @ turn).mT
        focal = height * float(camera((1, 1), FOV)[1, 1])
        depth = focal / log_scale.exp()
        place = torch.stack([x, y], 1) * (depth / focal)[:, None]
        z = depth[:, None] + points[..., 2]
        return (points[..., :2] + place[:, None]) * (focal[:, None] / z)[..., None]


# ---------------------------------------------------------------------------------------------------- training


def train(data: Examples, epochs: int, seed: int = 0) -> StandNet:
    """A network fitted with the robust error of the joints."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    net, joints_of, batch = StandNet(), Joints(load_body()), 64
    net.mean.copy_(torch.stack([data.stands[data.kinds == k].mean(0) for k in range(len(KINDS))]))  # type: ignore[operator]
    net.mean[:, [2, 4]] = 0  # type: ignore[index, operator]
    net.spread.copy_(torch.tensor([20.0, 3.0, 6.0, 0.2, 0.05, 0.1]))  # type: ignore[operator]
    whole = len(data.kinds) // batch

    def losses() -> Iterator[Tensor]:
        for _ in range(epochs):
            order = torch.randperm(len(data.kinds), generator=generator)
            for ids in order[: whole * batch].view(-1, batch):
                x, true, zoom = vary(data.pictures[ids], data.joints[ids], generator)
                stands = net(x, data.kinds[ids])
                off = (joints_of(stands, data.height[ids] * zoom) - true).square().sum(2)
                weight = torch.where(data.on[ids], 1.0, ASIDE)
                robust = ROBUST * ((1 + off / ROBUST**2).sqrt() - 1)
                calm = ((stands - net.mean[data.kinds[ids]]) / net.spread).square().mean()  # type: ignore[index]
                yield 100 * (robust * weight).sum() / weight.sum() + 0.002 * calm

    fit(net, losses(), epochs * whole, rate=4e-3, weight_decay=0.02)
    return net


@torch.no_grad()
def report(net: StandNet, seed: int, count: int, size: tuple[int, int] = (256, 192)) -> float:
    """Print how far joints that lie on the garment are off, beside the category's fixed body; the mean error.

    All as shares of the picture's height, on shop pictures as the wardrobe makes them.
    """
    body, off = load_body(), {kind: [np.empty((0, 2))] for kind in KINDS}
    for index in tqdm(range(count), desc="judging", disable=None):
        worn, rng = drawn(seed, index)
        shop, kind = shop_picture(worn, size, rng), KINDS[KINDS.index(worn.category.value)]
        picture = torch.from_numpy(shop.picture).permute(2, 0, 1) / 127.5 - 1
        true = joints_in(body, shop.params)
        guesses = [find_stand(net, picture, kind).params(body, size), standing(body, kind, size)]
        on = on_garment(true, shop.mask, 3)
        off[kind].append(
            np.stack([np.linalg.norm(joints_in(body, g) - true, axis=1)[on] for g in guesses], 1) / size[0]
        )
    print("% of the height: mean, median, nine in ten below; in brackets: the category's fixed body")
    every: dict[str, Array] = {k: np.concatenate(v) * 100 for k, v in off.items()}
    for name, values in (every | {"all": np.concatenate(list(every.values()))}).items():
        told = [np.mean(values, 0), np.median(values, 0), np.quantile(values, 0.9, axis=0)] if len(values) else []
        print(f"{name:6} " + " ".join(f"{a:6.2f} ({b:5.2f})" for a, b in told) + f"  {len(values)} joints")
    return float(np.concatenate(list(every.values()))[:, 0].mean() / 100)


def main(argv: Sequence[str] | None = None) -> int:
    """Make pictures, train, report, save half-precision weights."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.standings.garment_standing", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="weights, .safetensors")
    parser.add_argument("--pictures", type=int, default=4000, metavar="N", help="to learn from (default 4000)")
    parser.add_argument("--held-out", type=int, default=500, metavar="N", help="to test on (default 500)")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    net = train(examples(LEARN, args.pictures, args.workers), args.epochs)
    report(net, HELD_OUT, args.held_out)
    save_half(net, args.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
