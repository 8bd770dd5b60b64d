"""The design that the canvas is compared with."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from omfa.bench.costs import arguments
from omfa.bench.dual_unet import DualUNet
from tests.conftest import UNET

SIZE = (16, 12)


def pair() -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    networks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        networks.append(UNet2DConditionModel(**UNET, in_channels=4, out_channels=4, cross_attention_dim=32).eval())
    return networks[0], networks[1]


@torch.no_grad()
def test_with_an_empty_reference_it_is_the_plain_unet() -> None:
    unet, reference = pair()
    person = arguments(unet, 2, SIZE)
    plain = unet(**person).sample
    dual = DualUNet(unet, reference)
    assert torch.equal(dual(person, None), plain)
    assert not torch.allclose(dual(person, arguments(reference, 2, SIZE)), plain, atol=1e-4)
    assert torch.equal(dual(person, None), plain)  # nothing lingers


@torch.no_grad()
def test_the_reference_is_appended_to_keys_and_values() -> None:
    """One layer's answer equals attention over both token lists, written out."""
    unet, reference = pair()
    dual, seen = DualUNet(unet, reference), {}
    name = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    own, other = unet.get_submodule(name), reference.get_submodule(name)
    own.register_forward_hook(lambda m, args, out: seen.update(own=args[0], out=out))
    other.register_forward_hook(lambda m, args, out: seen.update(other=args[0]))
    dual(arguments(unet, 1, SIZE), arguments(reference, 1, (16, 24)))
    both = torch.cat([seen["own"], seen["other"]], 1)
    assert both.shape[1] == 3 * seen["own"].shape[1]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (own.heads, -1)).transpose(1, 2)

    q, k, v = heads(own.to_q(seen["own"])), heads(own.to_k(both)), heads(own.to_v(both))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    answer = own.to_out[0]((weights @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(answer, seen["out"], atol=1e-5)


@torch.no_grad()
def test_guided_the_unconditional_half_sees_zeros() -> None:
    unet, reference = pair()
    dual = DualUNet(unet, reference)
    person, garment = arguments(unet, 1, SIZE), arguments(reference, 1, SIZE)
    twice = {k: torch.cat([v, v]) if isinstance(v, torch.Tensor) and v.ndim else v for k, v in person.items()}
    guided = dual(twice, garment)
    assert torch.allclose(guided[1:], dual(person, garment), atol=1e-5)
    assert not torch.allclose(guided[:1], guided[1:], atol=1e-4)


def test_only_the_main_unet_learns_with_and_without_checkpointing() -> None:
    unet, reference = pair()
    dual, gradients = DualUNet(unet.train(), reference), []
    person, garment = arguments(unet, 1, SIZE), arguments(reference, 1, SIZE)
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.zero_grad()
        dual(person, garment).square().mean().backward()
        gradients.append([p.grad for p in unet.parameters() if p.grad is not None])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    assert all(p.grad is None for p in reference.parameters())
