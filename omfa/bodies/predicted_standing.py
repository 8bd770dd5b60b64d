"""Standing bodies that fit a picture: how a body would stand in this shop picture, or in one of what a photo shows.

Two small networks that ship, trained on the synthetic wardrobe by ``data_prep.standings``:

- :class:`StandNet` sees a garment alone, cut to the square around it, so that it does not matter where in the picture
  the garment lies. It says arms, legs, turn, size and place of the body.
- :class:`ReachNet` sees a photo carried over to a body that stands at ease, whole, from the front and from behind. It
  says how far each category's garment reaches on the body; the shop picture is framed by that. The picture that is
  asked for is never looked at: its framing would tell the answer.

Legend: B batch, H W pixels, S = 64 side of what StandNet sees, h w = 64 48 what ReachNet sees, C = 3 categories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from omfa.bodies.body import Body, load_body
from omfa.bodies.paper import check_range, off_paper
from omfa.bodies.parameters import BETAS, EXPRESSION, BodyParameters
from omfa.bodies.placing import camera, project, rotation
from omfa.bodies.rasterise import NEAR
from omfa.bodies.standing import ARMS, FOV, Kind, framed, shop_pose, standing
from omfa.bodies.surface import Seen, Source, draft, resized, see

ASSETS = Path(str(files("omfa"))) / "assets"
STAND_WEIGHTS, REACH_WEIGHTS = ASSETS / "standing.safetensors", ASSETS / "cloth_reach.safetensors"
KINDS: tuple[Kind, ...] = get_args(Kind)
SIDE = 64
FILL = 0.8  # of the square: the garment's longer side
WHOLE = (64, 48)  # (h, w) of what ReachNet sees
_ENOUGH = 256  # pixels of height of the photo that it is made from; ReachNet has not seen more
FREE = 0.07  # share of a shop picture left free on each side, as the wardrobe's are in the mean
_WHOLE_PLACE = (0.57, 0.0, -0.15)  # scale, x, y of the body that ReachNet sees: all of it but the top of the head
_WITHIN: dict[Kind, tuple[int, ...]] = {"upper": (9,), "lower": (4, 5), "dress": (9, 0)}  # chest; knees; chest, pelvis
_WHITE = 0.15  # of [-1, 1], by which all cloth is darker than the paper for StandNet: it has seen no whiter one
_BEYOND = 0.25  # of the garment's height that knees may lie under shorts
_NEAR = -0.12  # metres: how far the front of a body is before its pelvis


# ---------------------------------------------------------------------------------------------------- a standing


@dataclass(frozen=True)
class Stand:
    """How a body stands in a shop picture, whatever the picture's size.

    Args:
        arms: degrees by which the upper arms hang below the horizontal.
        legs: degrees by which each leg is spread.
        yaw: degrees; +90: turned to the body's own left.
        scale: of the picture's height, one metre at the pelvis.
        x: the pelvis right of the picture's middle, as a share of the picture's height.
        y: the same, below it.
    """

    arms: float
    legs: float
    yaw: float
    scale: float
    x: float
    y: float

    def params(self, body: Body, size: tuple[int, int]) -> BodyParameters:
        """The body in a picture of (H, W); ValueError if a number is none, or the scale not above 0."""
        if not self.scale > 0:
            raise ValueError(f"scale {self.scale} must be above 0: the share of the picture's height that a metre is")
        K, pose = camera(size, FOV), shop_pose(self.arms, self.legs, yaw=self.yaw)
        depth = K[1, 1] / (self.scale * size[0])
        pelvis = np.array([self.x, self.y, 1.0]) * [size[0] / K[0, 0], size[0] / K[1, 1], 1.0] * depth
        return BodyParameters(
            body.name, body.hash, np.zeros(BETAS), np.zeros(EXPRESSION), pose, pelvis - body.rest_joints[0], K, size
        )  # fmt: skip

    @classmethod
    def of(cls, body: Body, params: BodyParameters) -> Stand:
        """What :meth:`params` was made from; of another's parameters, the nearest to it."""
        pelvis = params.transl + body.rest_joints[0]
        height, width = params.image_size
        place = params.K[:2] @ (pelvis / pelvis[2]) - np.array([width - 1, height - 1]) / 2
        forward = rotation(params.pose[0])[:, 2]
        return cls(
            arms=float(np.degrees(params.pose[17, 2] - params.pose[16, 2]) / 2),
            legs=float(np.degrees(params.pose[1, 2] - params.pose[2, 2]) / 2),
            yaw=float(np.degrees(np.arctan2(forward[0], np.copysign(np.hypot(*forward[1:]), -forward[2])))),
            scale=float(params.K[1, 1] / pelvis[2] / height),
            x=float(place[0] / height),
            y=float(place[1] / height),
        )

    def mirrored(self) -> Stand:
        """Left for right."""
        return replace(self, yaw=-self.yaw, x=-self.x)


# ---------------------------------------------------------------------------------------------------- networks


def _features(channels: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Two convolutions a level, the first of stride 2."""
    blocks: list[nn.Module] = []
    for a, b in zip((channels, *widths[:-1]), widths, strict=True):
        for c, stride in ((a, 2), (b, 1)):
            blocks += [nn.Conv2d(c, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.SiLU()]
    return nn.Sequential(*blocks, nn.Flatten())


class StandNet(nn.Module):
    """Four levels of convolutions and two linear layers: about 200,000 parameters.

    Its last layer's numbers are turned into a standing by ``mean`` and ``spread``: (C, 6) and (6,), of the training.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.features = _features(3, widths)
        self.head = nn.Sequential(
            nn.Linear(widths[-1] * (SIDE >> len(widths)) ** 2 + len(KINDS), 96), nn.SiLU(), nn.Linear(96, 6)
        )
        self.register_buffer("mean", torch.zeros(len(KINDS), 6))
        self.register_buffer("spread", torch.ones(6))

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        """(B, 3, S, S), 0 the paper and -2 black, and (B,) of KINDS to (B, 6): a Stand in the square, scale as log."""
        told = F.one_hot(kind, len(KINDS)).to(x)
        return self.mean[kind] + self.spread * self.head(torch.cat([self.features(x), told], 1))  # type: ignore[index, operator]


class ReachNet(nn.Module):
    """Four levels of convolutions and two linear layers: about 200,000 parameters. ``mean``, ``spread``: (C, 3)."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 48, 64)) -> None:
        super().__init__()
        self.features = _features(8, widths)
        count = WHOLE[0] * WHOLE[1] >> 2 * len(widths)
        self.head = nn.Sequential(nn.Linear(widths[-1] * count, 64), nn.SiLU(), nn.Linear(64, 3 * len(KINDS)))
        self.register_buffer("mean", torch.zeros(len(KINDS), 3))
        self.register_buffer("spread", torch.ones(len(KINDS), 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 8, h, w) to (B, C, 3) metres from the pelvis: the garment's top and bottom (down), half its width."""
        return self.mean + self.spread * self.head(self.features(x)).unflatten(1, (len(KINDS), 3))  # type: ignore[operator]


class Standings(NamedTuple):
    """Both networks, ready to use."""

    stand: StandNet
    reach: ReachNet


@lru_cache(maxsize=1)
def load_standing() -> Standings:
    """The networks that ship, in float32 on the CPU; loaded once a process."""
    nets = Standings(StandNet(), ReachNet())
    for net, path in zip(nets, (STAND_WEIGHTS, REACH_WEIGHTS), strict=True):
        net.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in load_file(path).items()})
        net.eval().requires_grad_(False)
    return nets


# ---------------------------------------------------------------------------------------------------- a shop picture


class Square(NamedTuple):
    """A square cut around a garment: picture (3, S, S), 0 the paper; its place and side in pixels."""

    picture: Tensor
    left: int
    top: int
    side: int


def square(picture: Tensor) -> Square:
    """The square around what is not paper in a picture (3, H, W) in [-1, 1]; around all of it, if nothing is paper."""
    picture = picture.float().cpu()
    rim = torch.cat([picture[:, 0], picture[:, -1], picture[:, :, 0], picture[:, :, -1]], 1)
    paper = rim.median(1).values[:, None, None]
    shown = off_paper(picture)
    picture = torch.where(shown, (picture - paper).clamp(max=-_WHITE), 0.0) + paper
    shown = shown if shown.any() else torch.ones_like(shown)
    rows, columns = torch.nonzero(shown.any(1))[:, 0], torch.nonzero(shown.any(0))[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = round(max(bottom - top, right - left) / FILL)
    top, left = (top + bottom - side) // 2, (left + right - side) // 2
    height, width = shown.shape
    cut = F.pad(picture - paper, (-left, left + side - width, -top, top + side - height))
    small = F.interpolate(cut[None], (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[0]
    return Square(small, left, top, side)


def find_stand(net: StandNet, picture: Tensor, category: Kind) -> Stand:
    """What a network says of a garment picture (3, H, W) in [-1, 1]; a mirrored one gets the mirrored answer."""
    height, width = picture.shape[-2:]
    cut = square(picture)
    both = torch.stack([cut.picture, cut.picture.flip(-1)])
    with torch.no_grad():
        ahead, flipped = net(both, torch.full((2,), KINDS.index(category)))
    mean = (ahead + flipped * ahead.new_tensor([1, 1, -1, 1, -1, 1])) / 2
    arms, legs, yaw, log_scale, x, y = mean.tolist()
    share = cut.side / height
    return Stand(
        arms=min(max(arms, 0), 90), legs=min(max(legs, -5), 20), yaw=min(max(yaw, -30), 30),
        scale=math.exp(min(max(log_scale, -4), 2)) * share,
        x=x * share + (cut.left + cut.side / 2 - width / 2) / height,
        y=y * share + (cut.top + cut.side / 2 - height / 2) / height,
    )  # fmt: skip


def garment_standing(
    picture: Tensor, category: Kind, size: tuple[int, int] | None = None, body: Body | None = None
) -> BodyParameters:
    """How a body would stand in a garment picture, wearing it: what the network says, right or not (:func:`stand_in`).

    Args:
        picture: (3, H, W) in [-1, 1], a garment on plain light ground.
        category: what it shows.
        size: (H, W) of the parameters, stretched to; None: the picture's.
        body: whose; None: the open body's.

    Raises:
        ValueError: an unknown category, or no picture.
    """
    _check(picture, category)
    height, width = picture.shape[-2:]
    stand = find_stand(load_standing().stand, picture, category)
    return resized(stand.params(load_body() if body is None else body, (height, width)), size or (height, width))


def stand_in(
    picture: Tensor, category: Kind, size: tuple[int, int] | None = None, body: Body | None = None
) -> tuple[BodyParameters, str]:
    """The body in a garment picture: :func:`garment_standing`, or the category's own where that can't be right.

    Args:
        picture, category, size, body: as there; so are errors.

    Returns:
        The body, and how it is known: "predicted", or "category: " and the reason.
    """
    _check(picture, category)
    body, own = load_body() if body is None else body, (picture.shape[1], picture.shape[2])
    shown = off_paper(picture).cpu().numpy()
    if shown.all() or not shown.any():
        return standing(body, category, size or own), "category: the garment can't be told from its ground"
    params = garment_standing(picture, category, body=body)
    posed = body.posed(params)
    at = project(posed.joints[0].cpu().numpy()[list(_WITHIN[category])], params.K)
    rows, columns = np.nonzero(shown.any(1))[0], np.nonzero(shown.any(0))[0]
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]])
    room = _BEYOND * (high - low) if category == "lower" else 0
    if float(posed.vertices[..., 2].min()) > NEAR and ((at >= low - room) & (at <= high + room)).all():
        return resized(params, size or own), "predicted"
    return standing(body, category, size or own), "category: the predicted body doesn't stand in the garment"


def _check(picture: Tensor, category: Kind) -> None:
    if category not in KINDS:
        raise ValueError(f"category {category!r} must be one of {', '.join(KINDS)}")
    if picture.ndim != 3 or picture.shape[0] != 3:
        raise ValueError(f"a picture of shape {tuple(picture.shape)}; give (3, H, W) of finite numbers in [-1, 1]")
    check_range(picture)


# ---------------------------------------------------------------------------------------------------- off a photo


def at_ease(photo: Tensor, params: BodyParameters, body: Body) -> Tensor:
    """(8, h, w) a photo carried over to a body at ease: colours and where they are known, from the front and behind.

    Args:
        photo: (3, H, W) in [-1, 1].
        params: the body in it.
        body: whose.

    Raises:
        NoDraft: the body is not in the photo, or is another's.
    """
    height, width = photo.shape[-2:]
    if height > _ENOUGH:
        height, width = _ENOUGH, max(1, round(width * _ENOUGH / height))
        photo = F.interpolate(photo[None].float(), (height, width), mode="bilinear", antialias=True)[0]
    source = Source(photo.float(), see(body, params, (height, width)))
    seen = []
    for target in _both_sides(body):
        made = draft(target, [source])
        seen += [made.picture, made.valid[None].float()]
    return torch.cat(seen).cpu()


@lru_cache(maxsize=2)
def _both_sides(body: Body) -> tuple[Seen, Seen]:
    """A body at ease, from the front and from behind."""
    front, back = (see(body, Stand(ARMS, 0, yaw, *_WHOLE_PLACE).params(body, WHOLE)) for yaw in (0.0, 180.0))
    return front, back


def framing(reach: tuple[float, float, float], body: Body, size: tuple[int, int]) -> BodyParameters:
    """The body at ease in the shop picture of a garment that reaches so far, framed as most are.

    Args:
        reach: metres from the pelvis at ease: top and bottom (downwards), half the width.
        body: whose.
        size: (H, W).
    """
    top, bottom, half = reach
    K = camera(size, FOV)
    ends = np.array([[-half, top, _NEAR], [half, bottom, _NEAR]])
    transl = framed(ends, K, size, (top, bottom), FREE) - body.rest_joints[0]
    zero = np.zeros(BETAS)
    return BodyParameters(body.name, body.hash, zero, np.zeros(EXPRESSION), shop_pose(ARMS), transl, K, size)


def standing_off(
    photo: Tensor, params: BodyParameters, category: Kind, size: tuple[int, int], body: Body | None = None
) -> BodyParameters:
    """How a body would stand in the shop picture of a garment that a photo shows: a choice, made from the photo alone.

    Args:
        photo: (3, H, W) in [-1, 1].
        params: the body in it.
        category: of the garment.
        size: (H, W) of the shop picture.
        body: whose; None: the open body's.

    Raises:
        ValueError: an unknown category, or no picture.
        NoDraft: the body is not in the photo.
    """
    _check(photo, category)
    body = load_body() if body is None else body
    seen = at_ease(photo, params, body)
    reach = load_standing().reach(torch.stack([seen, seen.flip(-1)]))[:, KINDS.index(category)].mean(0)
    top, bottom, half = reach.tolist()
    return framing((top, max(bottom, top + 0.1), max(half, 0.05)), body, size)
