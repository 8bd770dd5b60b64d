"""What the camera sees in the wardrobe: people in poses, garments alone as shops show them, heads.

Legend: H W pixels, n points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.wardrobe.dressing import Dressed, garment_layer, layers_of, pose_body, shoes_layer, stool
from data_prep.wardrobe.garment_meshes import make_garment, make_shoes
from data_prep.wardrobe.meshes import Wearer
from data_prep.wardrobe.outfits import Outfit, Worn
from data_prep.wardrobe.photography import place, taken
from data_prep.wardrobe.scene import STUDIO, Layer, background, draw_light, render
from data_prep.wardrobe.tailor import tailor
from omfa.bodies.named_poses import NAMED_POSES, clamp_pose, mirror_pose
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import camera, look_at, rotation_vector
from omfa.bodies.standing import FOV, MARGIN, framed, shop_pose

Array = NDArray[Any]


# ---------------------------------------------------------------------------------------------------- poses


def draw_pose(rng: np.random.Generator) -> tuple[str, Array]:
    """A plausible pose in the model frame: a named pose, loosened, or arms and legs drawn freely.

    Returns:
        A word for it and the (55, 3) pose, inside the joints' limits.
    """
    odds = {
        "standing": 0.26, "contrapposto": 0.10, "walking": 0.12, "hands_on_hips": 0.06, "hand_on_hip": 0.07,
        "a_pose": 0.06, "waving": 0.03, "arms_raised": 0.03, "arms_crossed": 0.03, "sitting": 0.05, "lunge": 0.02,
        "free": 0.17,
    }  # fmt: skip
    odds = {k: p for k, p in odds.items() if k == "free" or k in NAMED_POSES}
    p = np.array(list(odds.values()))
    name = str(rng.choice(list(odds), p=p / p.sum()))
    pose = NAMED_POSES["standing" if name == "free" else name].astype(np.float64).copy()
    if name == "free":
        for side, (shoulder, elbow) in ((1, (16, 18)), (-1, (17, 19))):
            pose[shoulder] = np.radians(
                [rng.uniform(-20, 20), side * rng.uniform(-35, 15), side * rng.uniform(-72, 30)]
            )
            pose[elbow] = np.radians([rng.uniform(-20, 20), side * rng.uniform(-100, 0), 0])
        pose[1] = np.radians([rng.uniform(-22, 10), 0, rng.uniform(-2, 8)])
        pose[2] = np.radians([rng.uniform(-22, 10), 0, rng.uniform(-8, 2)])
        pose[4], pose[5] = np.radians([rng.uniform(0, 25), 0, 0]), np.radians([rng.uniform(0, 25), 0, 0])
    if rng.random() < 0.5:
        pose = mirror_pose(pose).astype(np.float64)
    loose = np.zeros((55, 3))
    loose[[3, 6, 9]] = rng.normal(0, 2.5, (3, 3))
    loose[[12, 15]] = rng.normal(0, (4, 7, 3), (2, 3))
    loose[[16, 17]] = rng.normal(0, 5, (2, 3))
    loose[[18, 19]] = rng.normal(0, (4, 6, 0), (2, 3))
    loose[[1, 2]] = rng.normal(0, (3, 3, 1.5), (2, 3))
    loose[[4, 5]] = np.abs(rng.normal(0, (3, 0, 0), (2, 3)))
    return name, clamp_pose(pose + np.radians(loose))


def draw_yaw(rng: np.random.Generator, view: int) -> float:
    """Degrees in (-180, 180]: the first view near the front, the others spread over the full turn."""
    draw = rng.random()
    if view == 0:
        yaw = rng.normal(0, 16)
    elif draw < 0.45:
        yaw = rng.normal(0, 28)
    elif draw < 0.70:
        yaw = rng.normal(0, 65)
    else:
        yaw = rng.uniform(-180, 180)
    return float(round(180 - (180 - yaw) % 360, 2))


# ---------------------------------------------------------------------------------------------------- pictures


def _project(points: Array, K: Array) -> Array:
    return points[..., :2] / points[..., 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]


class Shop(NamedTuple):
    """A garment alone: picture (H, W, 3) uint8 on white, mask (H, W) bool, and the body that would stand in it."""

    picture: Array
    mask: Array
    params: BodyParameters


def shop_picture(worn: Worn, size: tuple[int, int], rng: np.random.Generator | None = None) -> Shop:
    """A garment alone, from the front, on white, cut for the template body.

    Args:
        worn: the garment.
        size: (H, W).
        rng: draws how it hangs and how it is framed, as shop pictures differ; None: arms a little out, straight on.
    """
    pose, fov, margin, shift = shop_pose(), FOV, MARGIN, np.zeros(2)
    if rng is not None:
        arms, legs = rng.uniform(28, 74), rng.uniform(-1, 5)
        pose = shop_pose(arms, legs, yaw=float(rng.normal(0, 4)), pitch=float(rng.normal(3, 2)))
        pose[18:20, 1] *= rng.uniform(0, 4)  # elbows, bent forward by up to 24 degrees
        fov, margin, shift = float(rng.uniform(10, 20)), float(rng.uniform(0.03, 0.11)), rng.uniform(-0.02, 0.02, 2)
    return hang(worn, size, pose, fov, margin, shift)


def hang(worn: Worn, size: tuple[int, int], pose: Array, fov: float, margin: float, shift: Array) -> Shop:
    """A garment alone, as it hangs on the template body in a pose of :func:`omfa.bodies.standing.shop_pose`.

    ``margin``: share of the picture left free; ``shift`` (2,): off the middle, right and down, as shares of the sides.
    """
    t = tailor()
    nobody = np.zeros_like(t.template)
    garment = make_garment(worn.cut, nobody, worn.phase)
    points = garment.posed(pose_body(nobody, t.joints, pose))

    def layer(transl: Array) -> Layer:
        return garment_layer(garment, points + transl.astype(np.float32), np.arange(len(garment.faces)), worn)

    return _alone(points, layer, size, pose, fov, margin, shift)


ABOVE, CLOSE = 18.0, -7.0  # degrees from which shoes are seen, and by which legs are spread in them: feet together


def shoes_picture(outfit: Outfit, size: tuple[int, int], rng: np.random.Generator | None = None) -> Shop:
    """The outfit's pair of shoes alone, standing, from the front and a little above, on white, on the template body.

    Arguments as those of :func:`shop_picture`.
    """
    pose, fov, margin, shift = shop_pose(legs=CLOSE, pitch=ABOVE), FOV, MARGIN, np.zeros(2)
    if rng is not None:
        legs, yaw, pitch = CLOSE + float(rng.uniform(-1, 2)), float(rng.normal(0, 8)), float(rng.normal(ABOVE, 4))
        pose = shop_pose(legs=legs, yaw=yaw, pitch=pitch)
        fov, margin, shift = float(rng.uniform(10, 20)), float(rng.uniform(0.03, 0.11)), rng.uniform(-0.02, 0.02, 2)
    pose[[7, 8]] = -pose[[1, 2]]  # soles flat on the ground
    t = tailor()
    nobody = np.zeros_like(t.template)
    shoes, posed = make_shoes(nobody, outfit.shoe_height)[0], pose_body(nobody, t.joints, pose)

    def layer(transl: Array) -> Layer:
        return shoes_layer(shoes, posed.moved(transl), outfit)

    return _alone(shoes.posed(posed), layer, size, pose, fov, margin, shift)


def _alone(
    points: Array, layer: Callable[[Array], Layer], size: tuple[int, int], pose: Array, fov: float, margin: float,
    shift: Array,
) -> Shop:  # fmt: skip
    """Surface points (N, 3) framed, and the layer there, moved by (3,), before the camera; the rest as in `hang`."""
    t, K = tailor(), camera(size, fov)
    transl = framed(points, K, size, (points[:, 1].min(), points[:, 1].max()), margin)
    transl[:2] += shift * size[::-1] / K[0, 0] * transl[2]
    picture = render([layer(transl)], K, size, STUDIO)
    body, zero = t.body, np.zeros(10)
    params = BodyParameters(body.name, body.hash, zero, zero, pose, transl, K, size)
    return Shop(picture.over(1.0), picture.cover > 0.5, params)


def face_size(width: int) -> int:
    """Side of the face crop: half the picture's width, rounded up to a multiple of 32."""
    return -(-width // 64) * 32


def portrait(
    dressed: Dressed, rng: np.random.Generator, side: int, photographic: bool = False
) -> tuple[Array, BodyParameters]:
    """Head and shoulders, near the front, of its own pose, light and background; ``photographic`` as in `make_view`.

    Returns:
        The picture (side, side, 3) uint8, and the body in it.
    """
    pose = NAMED_POSES["standing"].astype(np.float64).copy()
    pose[[12, 15]] += np.radians(rng.normal(0, (3, 5, 2), (2, 3)))
    pose[0] = rotation_vector(look_at(float(np.clip(rng.normal(0, 14), -35, 35)), float(rng.uniform(-3, 6))))
    expression = np.clip(rng.normal(0, 0.5, 10), -1, 1).astype(np.float32)
    K = camera((side, side), 12.0)
    posed = pose_body(dressed.shape, dressed.joints, pose, expression)
    head = posed.joints[15] + posed.transforms[15, :, :3] @ np.array([0, 0.045, 0.03])
    transl = np.array([0, 0, K[1, 1] * 0.40 / side]) - head  # 40 cm fill the picture
    layers = layers_of(dressed, posed.moved(transl))
    shown = [layer for name, layer in layers.items() if name not in ("lower", "shoes")]
    light, behind = draw_light(rng), place if photographic and rng.random() < 0.7 else background
    picture = render(shown, K, (side, side), light).over(behind(rng, (side, side), None))
    picture = taken(rng, picture) if photographic else picture
    body, betas = tailor().body, np.array(dressed.person.betas, np.float32)
    return picture, BodyParameters(body.name, body.hash, betas, expression, pose, transl, K, (side, side))


@dataclass(frozen=True, eq=False)
class View:
    """One picture of a dressed person: person (H, W, 3), labels and parts (H, W), all uint8; joints (55, 3)."""

    person: Array
    labels: Array
    parts: Array
    params: BodyParameters
    joints: Array
    words: dict[str, Any]


def make_view(
    dressed: Dressed, rng: np.random.Generator, view: int, size: tuple[int, int], photographic: bool = False
) -> View:
    """A dressed person in a pose, before a camera, in a place, all drawn from ``rng``.

    ``photographic``: mostly in a room or a street, and as a camera gives it.
    """
    name, pose = draw_pose(rng)
    yaw, pitch = draw_yaw(rng, view), float(round(rng.normal(3, 3), 2))
    turn = look_at(yaw, pitch)
    pose[0] = rotation_vector(turn)
    expression = np.clip(rng.normal(0, 0.4, 10), -1, 1).astype(np.float32)
    K = camera(size, float(rng.uniform(16, 26)))
    posed = pose_body(dressed.shape, dressed.joints, pose, expression)

    y = posed.vertices[:, 1]
    full = name in ("sitting", "lunge") or rng.random() < 0.68
    knees = float(posed.joints[[4, 5], 1].max()) + rng.uniform(-0.14, 0.16)
    transl = framed(
        posed.vertices, K, size, (y.min() - 0.03, y.max() + 0.02 if full else knees), rng.uniform(0.035, 0.075)
    )
    transl[0] += rng.uniform(-0.03, 0.03) * K[0, 2] / K[0, 0] * transl[2]
    posed = posed.moved(transl)

    up = turn @ np.array([0, 1.0, 0])
    ground = float((posed.vertices @ up).min())
    layers = list(layers_of(dressed, posed).values())
    if name == "sitting":
        layers.append(stool(posed, up, ground))
    picture = render(layers, K, size, draw_light(rng))
    behind = place if photographic and rng.random() < 0.7 else background
    person = picture.over(behind(rng, size, _shadows(posed, up, ground, K)))
    body = tailor().body
    betas = np.array(dressed.person.betas, np.float32)
    params = BodyParameters(body.name, body.hash, betas, expression, pose, transl, K, size)
    words = {"view": view, "pose": name, "framing": "full" if full else "three-quarter", "yaw": yaw, "pitch": pitch}
    person = taken(rng, person) if photographic else person
    return View(person, picture.labels, picture.parts, params, posed.joints, words)


def _shadows(posed: Wearer, up: Array, ground: float, K: Array) -> Array:
    """(3, 3) x, y and reach in pixels of the shadows on the floor: under each foot, and a wide one between them."""
    soles = np.stack([posed.joints[[7 + s, 10 + s]].mean(0) for s in (0, 1)])
    soles = soles - up * (soles @ up - ground)[:, None]
    spots = np.concatenate([_project(soles, K), 0.14 * K[0, 0] / soles[:, 2:]], 1)
    return np.concatenate([spots, spots.mean(0, keepdims=True) * [1, 1, 1.9]])
