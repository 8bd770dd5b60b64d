"""Protocols hold together and bring pictures to the size at which they are compared."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from omfa.evaluation.protocols import PROTOCOLS, Protocol
from omfa.evaluation.scoring import beside, for_dists


def test_presets_hold_together() -> None:
    assert {p.name for p in PROTOCOLS.values()} == set(PROTOCOLS)
    assert PROTOCOLS["catvton"].metrics is not None and "lpips_squeeze" in PROTOCOLS["catvton"].metrics
    with pytest.raises(ValueError, match="unknown metrics"):
        Protocol("x", "", metrics=("fido",))
    with pytest.raises(ValueError, match="own size"):
        Protocol("x", "", truth_filter="lanczos")


def test_protocols_bring_pictures_to_their_size() -> None:
    square, portrait = Image.new("RGB", (512, 512)), Image.new("RGB", (768, 1024))
    for name, prediction in {"tryoffdiff": square, "temu-vtoff": portrait, "omfa-vitonhd-paired": portrait}.items():
        assert {p.size for p in beside(prediction, portrait, PROTOCOLS[name], "x")} == {(768, 1024)}
    small = Image.new("RGB", (384, 512))
    assert {p.size for p in beside(small, portrait, PROTOCOLS["catvton"], "x")} == {(384, 512)}
    with pytest.raises(ValueError, match=r"512x512 .* 512x384: .*\(wardrobe, tryoffdiff\)"):
        beside(square, portrait, PROTOCOLS["catvton"], "x")
    half = Image.fromarray(np.repeat(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8), 256, 1).repeat(512, 0))
    cut, _ = beside(half, portrait, PROTOCOLS["tryoffdiff"], "x")
    assert cut.getpixel((0, 500)) == (255, 0, 0) and cut.getpixel((767, 500)) == (0, 0, 255)


def test_dists_sees_each_picture_shrunk_from_its_own_size() -> None:
    """The prediction on 8-bit values, as PIL does it too; the truth in float."""
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    square = Image.fromarray(noise)
    cut = square.crop((64, 0, 448, 512))
    x, y = for_dists(square, cut, PROTOCOLS["tryoffdiff"])
    assert x.shape == y.shape == (1, 3, 341, 256)
    levels = (x * 255).round()
    assert (x * 255 - levels).abs().max() < 1e-4 < (y * 255 - (y * 255).round()).abs().max()
    theirs = np.asarray(cut.resize((256, 341), Image.Resampling.BILINEAR)).astype(float)
    assert np.abs(levels[0].permute(1, 2, 0).numpy() - theirs).max() <= 1
    assert 0 < (x - y).abs().max() < 1.5 / 255
    portrait = for_dists(cut, cut, PROTOCOLS["tryoffdiff"])
    assert (portrait[0] == x).all() and (portrait[1] == y).all()
