"""UNet surgery, and the VAE's two directions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from omfa.backbone import canvas_multiple, decode, encode, input_channels, vae_factor, widen_unet
from tests.conftest import UNET, VAE


def unet(channels: int) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**UNET, in_channels=channels, out_channels=4, cross_attention_dim=32).eval()


@pytest.mark.parametrize("channels", [4, 9])
def test_a_freshly_widened_unet_equals_the_original(channels: int, tmp_path: Path) -> None:
    x, context = torch.randn(2, 13, 16, 12), torch.randn(2, 4, 32)
    network = unet(channels)
    with torch.no_grad():
        before = network(x[:, :channels], 500, context).sample
        after = widen_unet(network)(x, 500, context).sample
    assert (before - after).abs().max() < 1e-5
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["in_channels"] == 13 and config["_widened_from"] == channels
    again = UNet2DConditionModel.from_pretrained(tmp_path)
    assert torch.equal(again.conv_in.weight, network.conv_in.weight)


def test_new_channels_learn() -> None:
    network = widen_unet(unet(4))
    network(torch.randn(1, 13, 8, 8), 500, torch.randn(1, 4, 32)).sample.square().mean().backward()
    assert network.conv_in.weight.grad is not None
    assert (network.conv_in.weight.grad[:, 4:].abs().amax((0, 2, 3)) > 0).all()


def test_widening_twice_changes_nothing_and_other_counts_are_refused() -> None:
    network = widen_unet(unet(4))
    weight = network.conv_in.weight
    assert widen_unet(network).conv_in.weight is weight
    with pytest.raises(ValueError, match="takes 5 channels"):
        widen_unet(unet(5))
    assert input_channels(4) == 13 and canvas_multiple(network) == 2


def test_encoding_alone() -> None:
    """Changing the target's picture changes no given latent by a bit, though both go through one VAE."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval()
    person, garment = torch.rand(2, 1, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        a = encode(vae, garment)
        encode(vae, person)
        b = encode(vae, garment)
    assert torch.equal(a, b) and a.shape == (1, 4, 16, 12) and vae_factor(vae) == 4


def test_scaling_factor_and_posterior_sample() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE).eval()
    x = torch.rand(1, 3, 64, 48) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(x).latent_dist
        noise = torch.randn_like(posterior.mean)
        assert torch.allclose(encode(vae, x), posterior.mean * 0.5)
        assert torch.allclose(encode(vae, x, noise), (posterior.mean + posterior.std * noise) * 0.5)
        assert torch.allclose(decode(vae, encode(vae, x)), vae.decode(posterior.mean).sample.clamp(-1, 1), atol=1e-6)
