from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close

from omfa.baselines.ladi_vton.masks import body25_to_18, garment_on_white, inpaint_mask, pose_map
from omfa.components import Category
from tests.baselines.ladi_vton.golden import CLOSE, read
from tests.baselines.rule import uniform

CATEGORIES = {"upper_body": Category.UPPER, "lower_body": Category.LOWER, "dresses": Category.DRESS}
MASKS = [(name, key) for name in ("dataset_masks", "dataset_masks_256") for key in sorted(read(name)) if "bits" in key]


def keypoints(data_set: str, variant: str, height: int) -> np.ndarray:
    golden = read("dataset_masks")
    if data_set == "vitonhd":
        return body25_to_18(golden[f"vitonhd.{variant}.body25"].numpy())[:, :2] * (height / 1024)
    return golden[f"dresscode.keypoints.{variant}"].numpy() * (height / 512)


def labels(data_set: str, height: int) -> np.ndarray:
    whole = Image.fromarray(read("dataset_masks")[f"parse_{data_set}"].numpy())
    return np.array(whole.resize((height * 3 // 4, height), Image.Resampling.NEAREST))


@pytest.mark.parametrize(("name", "key"), MASKS, ids=lambda x: x.removesuffix(".inpaint_mask_bits"))
def test_masks_as_the_originals_bit_for_bit(name: str, key: str) -> None:
    data_set, *category, variant, _ = key.split(".")
    stored = np.unpackbits(read(name)[key].numpy(), axis=1).astype(bool)
    height = len(stored)
    garment = CATEGORIES[category[0]] if category else Category.UPPER
    made = inpaint_mask(labels(data_set, height), keypoints(data_set, variant, height), garment, data_set)  # type: ignore[arg-type]
    assert (made == stored).all()


def test_there_is_a_mask_for_every_variant() -> None:
    assert len(MASKS) == 30


@pytest.mark.parametrize("data_set", ["vitonhd", "dresscode"])
@pytest.mark.parametrize("variant", ["full", "no_face"])
def test_pose_maps_as_the_originals(data_set: str, variant: str) -> None:
    golden = read("dataset_masks")
    made = pose_map(keypoints(data_set, variant, 512), (512, 384))
    x, y = golden["joints_rounded_xy"].T
    assert_close(made[:, y, x], golden[f"{data_set}.{variant}.pose_at_joints"], **CLOSE)
    assert_close(made.double().sum((1, 2)), golden[f"{data_set}.{variant}.pose_map_sum"], atol=1e-3, rtol=0)


def test_a_bump_is_its_whole_formula_wherever_its_joint_lies() -> None:
    """Bit for bit, though only what is near a joint is computed."""
    size = (256, 192)
    points = np.random.default_rng(0).uniform((-120, -120), (320, 380), (18, 2))
    points[:3] = [[0, 0], [1e6, 5], [-5, 90.5]]
    grid = [torch.arange(side, dtype=torch.float64) for side in size]
    for (x, y), made in zip(points, pose_map(points, size), strict=True):
        lines = (torch.exp(-(line - at).square() / 81) for line, at in zip(grid, (y, x), strict=True))
        bump = torch.outer(*lines).float()
        assert torch.equal(made, bump / (bump.max() + torch.finfo(torch.float32).eps) * float(max(x, y) > 0))


def test_pose_maps_at_the_other_sizes_as_the_originals() -> None:
    small = F.interpolate(pose_map(keypoints("vitonhd", "full", 512), (512, 384))[None], (64, 48), mode="bilinear")[0]
    assert_close(small[:, ::2, ::2], read("dataset_masks")["vitonhd.full.pose_map_latent_64x48_stride2"], **CLOSE)
    half = pose_map(keypoints("vitonhd", "full", 256), (256, 192))
    assert_close(half[:, ::8, ::8], read("dataset_masks_256")["vitonhd.full.pose_map_stride8"], **CLOSE)


def picture(name: str) -> torch.Tensor:
    values = (255 * uniform(f"ladi.data:{name}", (512, 384, 3), 0, 1)).to(torch.uint8)
    return values.movedim(2, 0).float() / 127.5 - 1


def test_the_garment_as_worn_as_the_original() -> None:
    golden = read("dataset_masks")
    worn = garment_on_white(picture("image"), labels("dresscode", 512), Category.UPPER, "dresscode")
    assert_close(worn[:, ::8, ::8], golden["dresscode.im_cloth_stride8"], **CLOSE)


def test_a_missing_left_wrist_is_overlooked_where_the_right_one_is_missing_too() -> None:
    """As published; the golden masks have it, and here is what it means."""
    points = keypoints("dresscode", "no_both_wrists", 512)
    corner = inpaint_mask(np.zeros((512, 384), np.uint8), points, Category.UPPER, "dresscode")[:8, :8]
    assert corner.all()  # the left wrist, not seen, is drawn at (0, 0)


def test_other_rules_and_points_are_refused() -> None:
    empty, points = np.zeros((64, 48), np.uint8), np.ones((18, 2))
    with pytest.raises(ValueError, match="vitonhd: upper"):
        inpaint_mask(empty, points, Category.DRESS, "vitonhd")
    with pytest.raises(ValueError, match=r"give \(18, 2\)"):
        inpaint_mask(empty, points[:17], Category.UPPER, "vitonhd")
    with pytest.raises(ValueError, match="finite"):
        pose_map(points * np.nan, (64, 48))
