"""Pictures of bodies: the z-buffer against a brute-force answer, and pose maps that depend on the body alone."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from omfa.bodies import pose_render
from omfa.bodies.body import PARTS, Body, face_parts, load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import camera, place, project, rotation, turned
from omfa.bodies.pose_render import (
    body_colours,
    head_box,
    part_map,
    person_mask,
    render_pose_map,
    supersampled,
    turntable,
)
from omfa.bodies.rasterise import NEAR, _egl, _egl_problem, interpolate, rasterise


@pytest.fixture(scope="module")
def body() -> Body:
    return load_body()


def brute_force(vertices, faces, K, size):
    """Every pixel's ray against every triangle (Moeller and Trumbore 1997), float64, one face after another."""
    height, width = size
    y, x = np.mgrid[:height, :width]
    rays = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3) @ np.linalg.inv(np.asarray(K, np.float64)).T
    best, depth, bary = np.full(len(rays), -1), np.full(len(rays), np.inf), np.zeros((len(rays), 3))
    for f, (a, b, c) in enumerate(vertices.astype(np.float64)[faces]):
        across = np.cross(rays, c - a)
        det = across @ (b - a)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = across @ -a / det
            lifted = np.cross(-a, b - a)
            v, t = rays @ lifted / det, (c - a) @ lifted / det
            hit = (np.abs(det) > 1e-14) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > NEAR) & (t < depth)
        best[hit], depth[hit] = f, t[hit]
        bary[hit] = np.stack([1 - u - v, u, v], 1)[hit]
    return best.reshape(size), bary.reshape(*size, 3), depth.reshape(size)


def random_mesh(seed, count=40, behind=False):
    rng = np.random.default_rng(seed)
    centres = rng.uniform([-1, -1, -1 if behind else 1.5], [1, 1, 4], (count, 1, 3))
    corners = centres + rng.normal(scale=0.5, size=(count, 3, 3)) * [1, 1, 1 if behind else 0.4]
    return corners.reshape(-1, 3).astype(np.float32), np.arange(3 * count).reshape(-1, 3)


@pytest.mark.parametrize("behind", [False, True], ids=["before", "through the camera"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rasteriser_agrees_with_ray_casting(seed, behind):
    vertices, faces = random_mesh(seed, behind=behind)
    K, size = camera((60, 45), 50), (60, 45)
    face, bary, depth = brute_force(vertices, faces, K, size)
    got = rasterise(torch.tensor(vertices), faces, K, size, engine="torch")
    same = got.face.numpy() == face
    assert (face >= 0).mean() > 0.3
    assert (~same).sum() <= 3, f"{(~same).sum()} pixels differ"  # rays that graze an edge
    shown = same & (face >= 0)
    np.testing.assert_allclose(got.bary.numpy()[shown], bary[shown], atol=1e-4)
    np.testing.assert_allclose(got.depth.numpy()[shown], depth[shown], rtol=1e-4)


def test_closed_mesh_has_no_cracks(body):
    params = place(body, NAMED_POSES["standing"], image_size=(200, 150))
    vertices = body.posed(params).vertices[0]
    fine = rasterise(vertices, body.faces, supersampled(params.K, 3), (600, 450), "torch").face.numpy() >= 0
    around = np.stack([np.roll(fine, s, a) for a in (0, 1) for s in (1, -1)]).all(0)
    assert (around & ~fine).sum() == 0


def test_chunks_do_not_change_the_picture(body, monkeypatch):
    params = place(body, NAMED_POSES["walking"], image_size=(120, 90))
    vertices = body.posed(params).vertices[0]
    whole = rasterise(vertices, body.faces, params.K, params.image_size, "torch")
    monkeypatch.setattr("omfa.bodies.rasterise._CANDIDATES", 997)
    pieces = rasterise(vertices, body.faces, params.K, params.image_size, "torch")
    assert torch.equal(whole.face, pieces.face)


def test_nothing_to_see():
    vertices, faces = random_mesh(0)
    behind = torch.tensor(vertices) * torch.tensor([1, 1, -1.0])
    for v, f in ((behind, faces), (torch.tensor(vertices), faces[:0])):
        got = rasterise(v, f, camera((20, 10)), (20, 10), "torch")
        assert (got.face == -1).all() and torch.isinf(got.depth).all()
        assert not interpolate(got, faces, torch.ones(len(v), 2)).any()


def test_interpolation_is_perspective_correct():
    """A slanted plane textured with its own depth: the interpolated attribute equals the depth buffer."""
    vertices = torch.tensor([[-1, -1, 1.2], [1, -1, 4.0], [1, 1, 4.0], [-1, 1, 1.2]])
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    got = rasterise(vertices, faces, camera((64, 64), 60), (64, 64), "torch")
    shown = got.face >= 0
    assert shown.any()
    torch.testing.assert_close(interpolate(got, faces, vertices)[..., 2][shown], got.depth[shown], rtol=1e-4, atol=1e-4)


def test_wrong_calls_are_refused(body):
    params = place(body, NAMED_POSES["standing"], image_size=(32, 24))
    with pytest.raises(ValueError, match="faces name vertices"):
        rasterise(torch.zeros(3, 3), np.array([[0, 1, 3]]), params.K, (4, 4))
    with pytest.raises(ValueError, match="style"):
        render_pose_map(body, params, "depth")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convert_parameters"):
        render_pose_map(body, replace(params, body_hash="0" * 16))


def test_egl_gives_the_same_picture(body):
    if _egl() is None:
        pytest.skip(f"no EGL on this machine: {_egl_problem()}")
    for yaw in (0, 75, 190):
        params = place(body, NAMED_POSES["hands_on_hips"], yaw=yaw, image_size=(512, 384))
        slow, fast = (render_pose_map(body, params, engine=e).astype(int) for e in ("torch", "egl"))
        assert (np.abs(slow - fast).max(-1) > 2).mean() < 1e-3


def seen_points(body, params, ids):
    """Pixel of each vertex and whether it is visible there (its depth is the depth buffer's)."""
    vertices = body.posed(params).vertices[0]
    depth = rasterise(vertices, body.faces, params.K, params.image_size, "torch").depth.numpy()
    pixel = np.round(project(vertices.numpy()[ids], params.K)).astype(int)
    height, width = params.image_size
    pixel = np.clip(pixel, 0, [width - 1, height - 1])
    return pixel, np.abs(depth[pixel[:, 1], pixel[:, 0]] - vertices.numpy()[ids, 2]) < 0.004


def test_a_body_point_has_one_colour_in_every_view(body):
    ids = np.arange(0, len(body.template), 7)
    first = place(body, NAMED_POSES["standing"], image_size=(1024, 768))
    second = turned(first, 35)
    a, seen_a = seen_points(body, first, ids)
    b, seen_b = seen_points(body, second, ids)
    both = seen_a & seen_b
    assert both.sum() > 300
    one, two = (render_pose_map(body, p, engine="torch").astype(int) for p in (first, second))
    gap = np.abs(one[a[both, 1], a[both, 0]] - two[b[both, 1], b[both, 0]]).max(1)
    assert np.median(gap) <= 4


def other_topology(body: Body, seed: int = 0) -> Body:
    """The same shape as another mesh: every face cut in four, vertices shuffled, skinning interpolated."""
    rng, m, faces = np.random.default_rng(seed), body.model, body.faces
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    unique, which = np.unique(edges, axis=0, return_inverse=True)
    count, middle = len(body.template), which.reshape(3, -1).T + len(body.template)
    a, b, c = faces.T
    ab, bc, ca = middle.T
    cut = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    order = rng.permutation(count + len(unique))  # new vertex i is old vertex order[i]

    def grown(x):
        return torch.cat([x, (x[unique[:, 0]] + x[unique[:, 1]]) / 2])[order]

    other = deepcopy(load_body())
    new = other.model
    for name in ("v_template", "shapedirs", "expr_dirs", "lbs_weights"):
        setattr(new, name, grown(getattr(m, name)))
    new.posedirs = grown(m.posedirs.reshape(486, -1, 3).transpose(0, 1)).transpose(0, 1).reshape(486, -1)
    regressor = torch.cat([m.J_regressor, torch.zeros(55, len(unique))], 1)
    new.J_regressor = regressor[:, order]
    new.faces = np.argsort(order)[cut]
    new.faces_tensor = torch.tensor(new.faces)
    return Body(new, "another mesh", f"{seed:016d}")


def test_colours_do_not_depend_on_the_mesh(body):
    other = other_topology(body)
    assert len(other.faces) == 4 * len(body.faces)
    for name in ("standing", "sitting"):
        params = place(body, NAMED_POSES[name], yaw=20, image_size=(256, 192))
        one = render_pose_map(body, params, engine="torch").astype(int)
        two = render_pose_map(other, replace(params, body_hash=other.hash), engine="torch").astype(int)
        shown = (one.sum(-1) > 0) & (two.sum(-1) > 0)
        gap = np.abs(one - two).max(-1)
        assert np.median(gap[shown]) <= 8 and np.quantile(gap[shown], 0.99) <= 24


def test_left_and_right_front_and_back_look_different(body):
    colours, parts = body_colours(body), pose_render.vertex_parts(body)
    means = np.stack([colours[parts == p].mean(0) for p in range(len(PARTS))])
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1) + 1e3 * np.eye(len(PARTS))
    assert gaps.min() > 25
    for p, name in enumerate(PARTS):
        if name.startswith("left"):
            assert gaps[p, PARTS.index(name.replace("left", "right"))] > 70, name
    front, back = (
        render_pose_map(body, place(body, NAMED_POSES["standing"], yaw=y, image_size=(256, 192))) for y in (0, 180)
    )
    assert front[front.sum(-1) > 0].mean() > 1.3 * back[back.sum(-1) > 0].mean()


def test_styles_masks_and_crop(body):
    params = place(body, NAMED_POSES["standing"], image_size=(256, 192))
    parts, mask = part_map(body, params), person_mask(body, params)
    assert set(np.unique(parts)) == {-1, *range(len(PARTS))} and face_parts(body).shape == (len(body.faces),)
    normals = render_pose_map(body, params, "normals")
    assert np.median(normals[mask][:, 2]) > 180  # what is seen looks at the camera
    flat = render_pose_map(body, params, "parts")
    assert len(np.unique(flat[mask], axis=0)) == len(PARTS) and not flat[~mask].any()
    x0, y0, x1, y1 = head_box(body, params)
    assert x1 - x0 == y1 - y0 and (parts[max(y0, 0) : y1, x0:x1] == 0).sum() == (parts == 0).sum()


def test_turntable_comes_round(body):
    start = place(body, NAMED_POSES["a_pose"], image_size=(128, 96))
    views = turntable(body, start, 4)
    assert len(views) == 4 and views[0].pose == pytest.approx(start.pose, abs=1e-6)
    round_trip = rotation(turned(views[3], 90).pose[0])
    np.testing.assert_allclose(round_trip, rotation(start.pose[0]), atol=1e-5)
    left, right = (person_mask(body, v).sum() for v in (views[1], views[3]))
    assert left == pytest.approx(right, rel=0.02)
