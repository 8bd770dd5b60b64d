"""Training of the networks that judge pictures: they learn what can be learned, and what is saved judges the same."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from data_prep.judges import pattern_kind, person_outline
from data_prep.judges.training import save_half
from omfa.evaluation.judges import OutlineNet


def test_outlines_are_learned_and_kept(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    outlines = torch.zeros(48, 1, 64, 48, dtype=torch.uint8)
    for o in outlines:
        y, x = torch.randint(4, 20, (2,), generator=g).tolist()
        o[:, y : y + 36, x : x + 20] = 255
    pictures = torch.where(outlines > 0, 200, 40).expand(-1, 3, -1, -1).to(torch.uint8)
    net = person_outline.train(pictures[:40], outlines[:40], steps=40, batch=8)
    assert not net.training
    assert person_outline.report(net, pictures[40:], outlines[40:]) > 0.9
    save_half(net, tmp_path / "net.safetensors")
    again = OutlineNet()
    again.load_state_dict(load_file(tmp_path / "net.safetensors"))
    x = pictures[40:].float() / 127.5 - 1
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    assert ((again.eval()(x) > 0) == (net(x) > 0)).float().mean() > 0.999


def test_kinds_are_learned() -> None:
    size = 48
    rows = (torch.arange(size) // 6 % 2 * 120 + 60).to(torch.uint8)
    pictures = torch.stack(
        [rows.expand(3, size, size) if k % 2 else rows[:, None].expand(3, size, size) for k in range(128)]
    )
    kinds = torch.arange(128) % 2
    net = pattern_kind.train(pictures, kinds, epochs=8)
    assert pattern_kind.report(net, pictures, kinds) > 0.95
