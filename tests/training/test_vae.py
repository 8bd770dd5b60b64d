"""The compact VAE: where its training begins, and its latents evened out."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL

from omfa.training.vae import VAEModule, even_out
from tests.conftest import VAE


def test_a_fresh_codec_keeps_mean_colours() -> None:
    size = {"block_out_channels": [8, 16, 16, 32], "latent_channels": 5, "norm_num_groups": 1, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    torch.manual_seed(0)
    vae = VAEModule({**size, **blocks, "mid_block_add_attention": False}).vae
    x = torch.nn.functional.interpolate(torch.rand(2, 3, 4, 3) * 2 - 1, scale_factor=16)
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        flat = vae.decode(posterior.mode()).sample
    assert torch.allclose(posterior.mean[:, :3], torch.nn.functional.avg_pool2d(x, 8), atol=0.05)
    assert (posterior.std < 0.1).all()
    middles = flat[..., 8::16, 8::16]
    assert torch.allclose(middles, x[..., 8::16, 8::16], atol=0.25)
    with pytest.raises(ValueError, match="norm_num_groups 1"):
        VAEModule({**size, **blocks, "norm_num_groups": 4})


def test_evened_latents_are_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE | {"use_quant_conv": True, "use_post_quant_conv": True}).eval()
    x = torch.rand(4, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        for conv in (vae.quant_conv, vae.post_quant_conv):
            conv.bias.normal_()
        before = vae.encode(x).latent_dist
        pictures = vae.decode(before.mean).sample
        cells = before.mean.movedim(1, 0).flatten(1).double()
        values = torch.linalg.eigvalsh(torch.cov(cells))
        even_out(vae, cells.mean(1).float(), torch.cov(cells).float())
        after = vae.encode(x).latent_dist
        assert torch.allclose(vae.decode(after.mean).sample, pictures, atol=1e-4)
    turned = (after.mean * vae.config.scaling_factor).movedim(1, 0).flatten(1).double()
    assert turned.mean(1).abs().max() < 1e-3
    goal = values.sqrt() / values.sqrt().mean()
    assert torch.allclose(torch.linalg.eigvalsh(torch.cov(turned)), goal, rtol=0.02)
    with pytest.raises(ValueError, match="use_quant_conv"):
        even_out(AutoencoderKL(**VAE | {"use_quant_conv": False}), torch.zeros(4), torch.eye(4))


def test_evening_out_keeps_log_variances_that_are_all_alike_but_for_scale() -> None:
    vae = AutoencoderKL(**VAE).eval()
    with torch.no_grad():
        vae.quant_conv.weight.zero_()
        vae.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [-6.0] * 4))
        even_out(vae, torch.zeros(4), 16 * torch.eye(4))  # turned by 16 ** -0.25, a half: variances are a quarter
        logvar = vae.encode(torch.zeros(1, 3, 16, 16)).latent_dist.logvar
    assert torch.allclose(logvar, torch.tensor(-6.0) - torch.tensor(4.0).log(), atol=1e-5)
