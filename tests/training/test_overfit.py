"""The whole road: a VAE, then the partial-diffusion model, learn two records by heart, in both directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from omfa import images
from omfa.backbone import decode, encode
from omfa.compact import compact_pipeline
from omfa.pipeline import OMFAPipeline
from omfa.records.prepared import Record, read_records, resolve
from omfa.training.examples import Drops, ExampleOptions, Geometry, RecordsDataset, TaskWeights, collate
from omfa.training.module import OMFAModule
from tests.conftest import SIZE
from tests.records.writing import write_records

VAE = {
    "block_out_channels": [16, 32, 32, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 8,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "mid_block_add_attention": False,
}
UNET = {
    "block_out_channels": [64, 96],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 8,
    "layers_per_block": 1,
}


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    """Over tensors in [-1, 1]."""
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def pictures(folder: Path, record: Record) -> dict[str, torch.Tensor]:
    paths = {"person": record.file_name, "pose": record.pose.map} | {g.category: g.path for g in record.garments}
    return {k: images.read_trusted(resolve(folder, p)) for k, p in paths.items()}


def train_vae(pixels: torch.Tensor, steps: int) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE)
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
        posterior = vae.encode(pixels).latent_dist
        loss = (vae.decode(posterior.sample()).sample - pixels).square().mean() + 1e-4 * posterior.kl().mean() / 384
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        vae.register_to_config(scaling_factor=float(1 / vae.encode(pixels).latent_dist.mean.std()))
    return vae.eval()


def train(pipe: OMFAPipeline, folder: Path, steps: int) -> None:
    data = RecordsDataset(
        folder, Geometry(pipe.canvas, 8, 8), ExampleOptions(tasks=TaskWeights(0.5, 0.5, 0), drops=Drops(0.05, 0, 0.5))
    )
    module = OMFAModule(pipe)
    optimizer = torch.optim.AdamW(module.parameters(), 2e-3, weight_decay=0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, 2 * (1 - step / steps))
        loss = module.losses(collate([data[4 * step + k, k % 2] for k in range(8)])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.slow
def test_two_records_are_learned_to_what_their_vae_can_show(records: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    chosen = [r for r in read_records(records) if r.id in ("ann-0-0", "ben-0-1")]
    for path in records.rglob("*.png"):
        target = tmp_path / path.relative_to(records)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    write_records(tmp_path, chosen)
    shown = [pictures(tmp_path, r) for r in chosen]
    vae = train_vae(torch.stack([p for s in shown for p in s.values()]), 400)
    pipe = compact_pipeline(VAE, UNET, SIZE, token_dim=32)
    pipe.vae.load_state_dict(vae.state_dict())
    pipe.vae.register_to_config(scaling_factor=vae.config.scaling_factor)
    pipe.set_progress_bar_config(disable=True)
    train(pipe, tmp_path, 1500)
    pipe.unet.eval()
    report, call = [], {"num_inference_steps": 25, "guidance_scale": 1.0, "output_type": "pt"}
    for record, truth in zip(chosen, shown, strict=True):
        worn = {g.category.value: resolve(tmp_path, g.path) for g in record.garments}
        head, pose = resolve(tmp_path, record.face.path), resolve(tmp_path, record.pose.map)
        seed = torch.Generator().manual_seed(1)
        on = pipe(["person"], None, worn, head, pose, generator=seed, **call)
        off = pipe.try_off(resolve(tmp_path, record.file_name), list(worn), generator=seed, **call)
        made = {"person": on.person[0], **{c: off.garments[c][0] for c in worn}}
        for name, picture in made.items():
            with torch.no_grad():
                ceiling = psnr(decode(vae, encode(vae, truth[name][None]))[0], truth[name])
            report.append((record.id, str(name), round(psnr(picture * 2 - 1, truth[name]), 2), round(ceiling, 2)))
    print(*report, sep="\n")
    assert np.min([made - ceiling for *_, made, ceiling in report]) > -1.0, report
