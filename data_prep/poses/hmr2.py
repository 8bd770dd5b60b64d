"""HMR2.0 (Goel et al., Humans in 4D, ICCV 2023, arXiv 2305.20091): the network written again, official weights loaded.

A ViT-H looks at a person's crop, a transformer decoder with a single query reads pose, shape and camera off its
features. Checkpoints are 4D-Humans' Lightning files, opened with ``weights_only``; no detectron2, chumpy or renderer.
The network speaks SMPL; its pose is taken over to SMPL-X (joints 1 to 21 have the same names), its betas are not, so
what comes out is marked approximate.

Legend: B crops, N = 192 tokens (16 rows, 12 columns) of D = 1280, J = 24 joints of SMPL, H W pixels of the photo.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from data_prep.poses.fitting import Fit
from data_prep.poses.landmarks import detect
from data_prep.poses.parameter_files import full_translation, on_body
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BETAS, EXPRESSION, JOINTS, BodyParameters
from omfa.bodies.placing import project, rotation_vector
from omfa.files import read_text

Array = NDArray[Any]
Box = tuple[float, float, float, float]

CROP = 256  # pixels a side; the network sees the middle 192 columns
FOCAL = 5000.0  # of the crop, pixels
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WHERE = "4D-Humans' checkpoint (https://github.com/shubham-goel/4D-Humans, its licence and SMPL's apply)"


# ---------------------------------------------------------------------------------------------------- network


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.proj(rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), _Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), _Mlp(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 16, stride=16, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(self.proj(x), "b d h w -> b (h w) d")


class Backbone(nn.Module):
    """The ViT: (B, 3, 256, 192) to tokens (B, 192, D). No class token: the first position is added to all others."""

    def __init__(self, dim: int = 1280, depth: int = 32, heads: int = 16) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbed(dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 193, dim))
        self.blocks = nn.ModuleList(_Block(dim, heads, 4 * dim) for _ in range(depth))
        self.last_norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.patch_embed(x) + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x)


class _SelfAttention(nn.Module):
    def __init__(self, dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        q, k, v = rearrange(self.to_qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        return self.to_out(rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _CrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_kv = nn.Linear(context_dim, 2 * heads * width, bias=False)
        self.to_q = nn.Linear(dim, heads * width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * width, dim), nn.Identity())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        k, v = rearrange(self.to_kv(context), "b n (two h d) -> two b h n d", two=2, h=self.heads)
        q = rearrange(self.to_q(x), "b n (h d) -> b h n d", h=self.heads)
        return self.to_out(rearrange(scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        none = nn.Identity  # dropout in training
        self.net = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), none(), nn.Linear(hidden, dim), none())

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.net(x)


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.fn(self.norm(x), context)


class _Layers(nn.Module):
    def __init__(self, dim: int, context_dim: int, depth: int, heads: int, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                _PreNorm(dim, fn)
                for fn in (
                    _SelfAttention(dim, heads, width),
                    _CrossAttention(dim, context_dim, heads, width),
                    _FeedForward(dim, hidden),
                )
            )
            for _ in range(depth)
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        for layer in self.layers:
            for part in layer:  # type: ignore[attr-defined]
                x = x + part(x, context)
        return x


class _Decoder(nn.Module):
    def __init__(self, token: int, dim: int, context_dim: int, depth: int, heads: int, width: int) -> None:
        super().__init__()
        self.to_token_embedding = nn.Linear(token, dim)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.transformer = _Layers(dim, context_dim, depth, heads, width, dim)

    def forward(self, token: Tensor, context: Tensor) -> Tensor:
        return self.transformer(self.to_token_embedding(token) + self.pos_embedding, context)


class Head(nn.Module):
    """Tokens to pose (B, 144) in six numbers a joint, betas (B, 10) and camera (B, 3), as offsets from a mean.

    Args:
        dim: of the decoder.
        context_dim: of the tokens.
        depth: layers.
        heads: of each attention.
        mean_token: whether the query is the mean itself (157 numbers) rather than one zero.
    """

    def __init__(
        self, dim: int = 1024, context_dim: int = 1280, depth: int = 6, heads: int = 8, mean_token: bool = False
    ) -> None:
        super().__init__()
        self.mean_token = mean_token
        self.transformer = _Decoder(157 if mean_token else 1, dim, context_dim, depth, heads, 64)
        self.decpose, self.decshape, self.deccam = nn.Linear(dim, 144), nn.Linear(dim, 10), nn.Linear(dim, 3)
        for name, size in (("body_pose", 144), ("betas", 10), ("cam", 3)):
            self.register_buffer(f"init_{name}", torch.zeros(1, size))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        mean = [getattr(self, f"init_{name}").expand(len(tokens), -1) for name in ("body_pose", "betas", "cam")]
        query = torch.cat(mean, dim=1)[:, None] if self.mean_token else tokens.new_zeros(len(tokens), 1, 1)
        x = self.transformer(query, tokens)[:, 0]
        pose, betas, camera = (
            dec(x) + m for dec, m in zip((self.decpose, self.decshape, self.deccam), mean, strict=True)
        )
        return pose, betas, camera


class Hmr2Network(nn.Module):
    """Backbone and head under the checkpoint's own names. The defaults are the released network."""

    def __init__(
        self, dim: int = 1280, depth: int = 32, heads: int = 16, head_dim: int = 1024, head_depth: int = 6,
        mean_token: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = Backbone(dim, depth, heads)
        self.smpl_head = Head(head_dim, dim, head_depth, mean_token=mean_token)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (B, 3, 256, 192), normalised, to rotations (B, 24, 3, 3), betas (B, 10) and camera (B, 3)."""
        pose, betas, camera = self.smpl_head(self.backbone(crops))
        return rotations_from_six(pose.reshape(len(pose), 24, 6)), betas, camera


def rotations_from_six(six: Tensor) -> Tensor:
    """(..., 3, 3) rotations from six numbers (Zhou et al., CVPR 2019): two columns made orthogonal."""
    a, b = six[..., :3], six[..., 3:]
    x = normalize(a, dim=-1)
    y = normalize(b - (x * b).sum(-1, keepdim=True) * x, dim=-1)
    return torch.stack([x, y, torch.linalg.cross(x, y)], dim=-1)


# ---------------------------------------------------------------------------------------------------- weights

_IGNORED = re.compile(r"(discriminator|smpl|smpl_parameter_loss|keypoint_\w+|mean_params)\.|initialized$")


class _Inert(dict[Any, Any]):
    """Stands in for a class of settings while a checkpoint is read: takes everything, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


# Lightning keeps the run's settings beside the weights, as objects of these classes, which need not be installed.
_SETTINGS = re.compile(
    r"omegaconf\.[\w.]+|typing\.Any|collections\.defaultdict|builtins\.(dict|list|int|str|float|bool)"
)
_DICTS = ("yacs.config.CfgNode",)  # torch fills no other class of dict than its own few


def load(path: Path, device: str = "cpu") -> Hmr2Network:
    """The network with the weights of an official Lightning checkpoint, strictly.

    Sizes are read off the weights, so a smaller network of the same layout loads as well.

    Raises:
        ValueError: no such file, no checkpoint, or other weights; says where to get it.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give {WHERE}")
    try:
        held = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        known: list[Any] = [
            (OrderedDict if n in _DICTS else _Inert, n) for n in held if n in _DICTS or _SETTINGS.fullmatch(n)
        ]
        with torch.serialization.safe_globals(known):
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises many kinds on a file that is none, or holds more than weights
        said = " ".join(str(e).split(".")[0].split()) or type(e).__name__
        raise ValueError(f"{path}: no checkpoint of plain weights ({said}); give {WHERE}") from None
    return from_weights(data.get("state_dict", data) if isinstance(data, Mapping) else {}, str(path)).to(device)


def from_weights(state: Mapping[str, Any], name: str = "weights") -> Hmr2Network:
    """The network that weights belong to, filled with them.

    Raises:
        ValueError: keys are missing or left over, or shapes don't fit.
    """
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise ValueError(f"{name}: these are no weights of HMR2.0; give {WHERE}")
    weights = {k: v for k, v in state.items() if not _IGNORED.match(k)}
    try:
        dim = weights["backbone.pos_embed"].shape[-1]
        token = weights["smpl_head.transformer.to_token_embedding.weight"].shape
        depth = _count(weights, "backbone.blocks.")
        head_depth = _count(weights, "smpl_head.transformer.transformer.layers.")
        sizes = token[0], token[1]
    except (KeyError, ValueError, AttributeError, IndexError, TypeError):
        raise ValueError(f"{name}: these are no weights of HMR2.0; give {WHERE}") from None
    with torch.device("meta"):
        network = Hmr2Network(dim, depth, max(1, dim // 80), sizes[0], head_depth, mean_token=sizes[1] == 157)
    try:
        network.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as e:
        raise ValueError(f"{name}: weights of HMR2.0 do not fit: {' '.join(str(e).split())[:400]}") from None
    return network.float().eval().requires_grad_(False)


def _count(weights: Mapping[str, Any], start: str) -> int:
    """How many numbered layers there are under a name."""
    return 1 + max(int(key.removeprefix(start).split(".")[0]) for key in weights if key.startswith(start))


# ---------------------------------------------------------------------------------------------------- crop, camera


def crop_side(box: Box) -> float:
    """Side in pixels of the square crop of a person's box: the box widened to 192:256, then its longer side."""
    width, height = box[2] - box[0], box[3] - box[1]
    return float(max(height, width * 256 / 192))


def crop(rgb: Array, box: Box) -> Tensor:
    """(1, 3, 256, 192) normalised crop of a person.

    Blurred before it is made smaller (sigma (f - 1) / 2 for a factor f = side / 256 / 2 above 1.1, as 4D-Humans does).

    Args:
        rgb: (H, W, 3) uint8.
        box: x0, y0, x1, y1 of the person in pixels.
    """
    side, (cx, cy) = crop_side(box), ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    factor = side / CROP / 2
    if factor > 1.1:
        rgb = cv2.GaussianBlur(rgb, (0, 0), (factor - 1) / 2)
    scale = CROP / side
    matrix = np.array([[scale, 0, CROP / 2 - scale * cx], [0, scale, CROP / 2 - scale * cy]])
    square = cv2.warpAffine(rgb, matrix, (CROP, CROP), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    normal = (square / 255 - MEAN) / STD
    return torch.from_numpy(normal[:, 32:-32].astype(np.float32).transpose(2, 0, 1).copy())[None]


def to_parameters(rotations: Array, camera: Array, box: Box, image_size: tuple[int, int]) -> BodyParameters:
    """SMPL's rotations (24, 3, 3) and crop camera (3,) as parameters in the whole photo's camera."""
    height, width = image_size
    focal = FOCAL / CROP * max(image_size)
    centre = np.array([box[0] + box[2], box[1] + box[3]]) / 2
    pose = NAMED_POSES["standing"].astype(np.float64).copy()  # SMPL has no fingers: relaxed ones
    pose[:25] = 0
    pose[:22] = [rotation_vector(r) for r in rotations[:22]]
    transl = full_translation(camera, centre, crop_side(box), image_size, focal)
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return BodyParameters("smpl of hmr2", "smpl", np.zeros(BETAS), np.zeros(EXPRESSION), pose, transl, K, image_size)


# ---------------------------------------------------------------------------------------------------- estimator


@dataclass(frozen=True)
class Hmr2:
    """An estimator (``data_prep.poses.pose_maps``): HMR2.0 on boxes from a file, or around the detector's landmarks.

    Args:
        checkpoint: the official file.
        boxes: json, item id to a list of boxes [x0, y0, x1, y1]; None to detect people.
        body: the body to end up with; None for the open one.
        device: for torch.
    """

    checkpoint: Path
    boxes: Path | None = None
    body: Path | None = None
    device: str = "cpu"

    @torch.inference_mode()
    def __call__(self, item_id: str, rgb: Array, person: int) -> Fit:
        """See ``data_prep.poses.pose_maps.Estimator``."""
        boxes = self._people(item_id, rgb)
        if person > len(boxes):
            raise ValueError(f"person {person} was asked for; {len(boxes)} found")
        box = boxes[person - 1]
        rotations, _, camera = cached(self.checkpoint, self.device)(crop(rgb, box).to(self.device))
        image_size = (rgb.shape[0], rgb.shape[1])
        params = to_parameters(rotations[0].cpu().numpy(), camera[0].cpu().numpy(), box, image_size)
        params = on_body(params, load_body(self.body), None)
        joints = load_body(self.body).posed(params).joints[0].cpu().numpy()
        return Fit(params, project(joints, params.K), np.ones(JOINTS), {}, "hmr2", len(boxes))

    def _people(self, item_id: str, rgb: Array) -> list[Box]:
        if self.boxes is None:
            return [_widened(person.box) for person in detect(rgb)]
        found = read_boxes(self.boxes).get(item_id)
        if not found:
            raise ValueError(f"{self.boxes} has no box for {item_id}")
        return found


def _widened(box: Box) -> Box:
    """A detector's box from the joints' box: flesh, hair and shoes lie outside the joints."""
    x, y = 0.1 * (box[2] - box[0]), 0.07 * (box[3] - box[1])
    return box[0] - x, box[1] - 1.5 * y, box[2] + x, box[3] + y


@lru_cache(maxsize=1)
def cached(path: Path, device: str) -> Hmr2Network:
    """:func:`load`, once a process."""
    return load(path, device)


@lru_cache(maxsize=1)
def read_boxes(path: Path) -> dict[str, list[Box]]:
    """Item id to boxes, from json.

    Raises:
        ValueError: no such file, or something else in it.
    """
    try:
        data = json.loads(read_text(path))
        boxes = {str(k): [(float(a), float(b), float(c), float(d)) for a, b, c, d in v] for k, v in data.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as e:
        raise ValueError(f'{path}: boxes are json like {{"ID": [[x0, y0, x1, y1], ...]}} ({e})') from None
    for name, found in boxes.items():
        if any(not np.isfinite(b).all() or b[2] <= b[0] or b[3] <= b[1] for b in found):
            raise ValueError(f"{path}: the boxes of {name} must have x0 < x1 and y0 < y1")
    return boxes
