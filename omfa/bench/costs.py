"""What a network costs, counted, not measured: operations and bytes, of full-size SDXL too, on any machine.

Operations are counted by torch's FlopCounterMode on the meta device, where nothing is computed: attention falls apart
into its two batched products there, both counted (4 B N M D for N queries and M keys of width D), while torch has no
formula for the CPU's fused kernel and would count 0. A training step is forward and backward; what checkpointing
computes twice is not counted.

Bytes are counted by running a step on fake tensors, which have sizes and no memory, and watching which are alive. The
CPU's fused attention keeps what a GPU's does: queries, keys, values, answers and one number a query. What is not in the
count: workspaces of kernels, fragments between blocks, the CUDA context (about 0.5 GB), buckets of a strategy.

``B`` batch; sizes are (height, width) in latents.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from einops import rearrange
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from omfa.backbone import vae_factor, widen_unet
from omfa.bench.dual_unet import DualUNet
from omfa.rows import cross_rows
from omfa.tuning import Train, choose_trained

SDXL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
"""The UNet of stable-diffusion-xl-base-1.0, as its config.json has it."""

SDXL_VAE: dict[str, Any] = {
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.13025,
}
TOKENS = 77  # of a prompt

Size = tuple[int, int]


def build_unet(config: Mapping[str, Any], device: str = "meta") -> UNet2DConditionModel:
    """The network of a config, widened for the canvas, in training mode; on the meta device it takes no memory."""
    with torch.device(device):
        return widen_unet(UNet2DConditionModel.from_config(dict(config))).train()


def arguments(unet: UNet2DConditionModel, batch: int, size: Size) -> dict[str, Any]:
    """Random arguments of one forward pass, on the UNet's device, whatever it is conditioned on.

    Args:
        unet: SDXL's, the compact model's, or a plain one.
        batch: B.
        size: of the canvas.
    """
    like, config = next(unet.parameters()), unet.config

    def randn(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, device=like.device, dtype=like.dtype)

    made: dict[str, Any] = {
        "sample": randn(config.in_channels, *size),
        "timestep": torch.full((batch,), 500, device=like.device),
        "encoder_hidden_states": randn(TOKENS, config.cross_attention_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        made["added_cond_kwargs"] = {"text_embeds": randn(pooled), "time_ids": randn(6)}
    elif config.class_embed_type == "projection":
        made["class_labels"] = randn(config.projection_class_embeddings_input_dim)
    return made


@dataclass(frozen=True)
class Design:
    """A network on random input of one size.

    Args:
        name: for tables.
        network: with all its weights.
        trained: the UNet that learns.
        plain: the prediction for a batch of B.
        guided: the same with classifier-free guidance, as one sampling step needs it.
    """

    name: str
    network: nn.Module
    trained: UNet2DConditionModel
    plain: Callable[[int], Tensor]
    guided: Callable[[int], Tensor]


def canvas_design(config: Mapping[str, Any], size: Size, device: str = "meta", targets: Size | None = None) -> Design:
    """One UNet over a canvas of ``size``; guidance doubles the batch, or runs once more over the ``targets`` alone."""
    unet = build_unet(config, device)

    def run(batch: int, size: Size = size) -> Tensor:
        return unet(**arguments(unet, batch, size), return_dict=False)[0]

    def guided(batch: int) -> Tensor:
        return run(2 * batch) if targets is None else run(batch) + run(batch, targets).sum()

    return Design(f"canvas {size[0]}x{size[1]}", unet, unet, run, guided)


def dual_design(config: Mapping[str, Any], size: Size, garment: Size, device: str = "meta") -> Design:
    """Two UNets, over the person (``size``) and over the garments; guidance runs the second one once."""
    unet, reference = build_unet(config, device), build_unet(config, device)
    dual = DualUNet(unet, reference)

    def run(persons: int, garments: int) -> Tensor:
        return dual(arguments(unet, persons, size), arguments(reference, garments, garment))

    name = f"two UNets {size[0]}x{size[1]} + {garment[0]}x{garment[1]}"
    return Design(name, dual, unet, lambda batch: run(batch, batch), lambda batch: run(2 * batch, batch))


@dataclass
class _Read:
    """Keys and values of given rows: kept while they run, read while a target does. No row is masked, all are one
    example's, so that it works on the meta device too, where :class:`omfa.rows.Recall` can't look at its masks."""

    layers: dict[str, list[tuple[Tensor, Tensor]]]
    keeps: bool

    def join(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, None]:
        """See :class:`omfa.rows.Crossing`."""
        if self.keeps:
            self.layers.setdefault(layer, []).append((keys, values))
            return keys, values, None
        given = [[rearrange(x, "r h l d -> 1 h (r l) d") for x in pair] for pair in self.layers[layer]]
        return torch.cat([keys, *(k for k, _ in given)], 2), torch.cat([values, *(v for _, v in given)], 2), None


@dataclass(frozen=True)
class RowsDesign:
    """One UNet over rows of an example: ``given`` runs once a picture, ``target`` every step, which reads what is
    given, and with guidance ``alone``, which does not."""

    network: nn.Module
    given: Callable[[], None]
    target: Callable[[], Tensor]
    alone: Callable[[], Tensor]


def rows_design(config: Mapping[str, Any], person: Size, garments: int, face: Size, device: str = "meta") -> RowsDesign:
    """A try-on in rows: a person of that size, so many garments of the same, a face; see :mod:`omfa.rows`."""
    unet = cross_rows(build_unet(config, device)).eval()
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def run(batch: int, size: Size, read: _Read | None) -> Tensor:
        crossing = None if read is None else {"rows": read}
        return unet(**arguments(unet, batch, size), cross_attention_kwargs=crossing, return_dict=False)[0]

    def given() -> None:
        layers.clear()
        run(garments, person, _Read(layers, True))
        run(1, face, _Read(layers, True))

    return RowsDesign(unet, given, lambda: run(1, person, _Read(layers, False)), lambda: run(1, person, None))


def flops(run: Callable[[], object]) -> int:
    """Floating-point operations of a call, a multiplication and an addition being two.

    On meta tensors, or without fused attention.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Flops:
    """Operations of one forward pass, one training step and one guided sampling step, batch 1."""

    forward: int
    training: int
    guided: int


def count_flops(design: Design) -> Flops:
    """Of a design on the meta device; training as its ``requires_grad`` says."""
    with torch.no_grad():
        forward, guided = flops(lambda: design.plain(1)), flops(lambda: design.guided(1))
    return Flops(forward, flops(lambda: design.plain(1).mean().backward()), guided)


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors made inside it: those ``alive`` now, and the most there were (``peak``).

    Args:
        known: tensors that are there already, and not to be counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._kept = [t.untyped_storage() for t in known]
        self._seen = {s._cdata for s in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and look at what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.alive -= size


@torch.no_grad()
def peak_bytes(network: nn.Module, run: Callable[[], object]) -> int:
    """The most that a call needs at once beside the weights, in bytes; on real tensors."""
    with Alive(network.parameters()) as counted:
        run()
    return counted.peak


@dataclass(frozen=True)
class TrainingBytes:
    """Memory of training on one device.

    Args:
        weights, gradients, optimizer, ema: of AdamW's two moments and an average of the trained weights in float32.
        activations: what the forward pass leaves for the backward pass (where weights are float32 and autocast is on,
            with their bfloat16 copies).
        peak: the most that is there at once in a step, all of the above included.
    """

    weights: int
    gradients: int
    optimizer: int
    ema: int
    activations: int
    peak: int


def training_bytes(
    config: Mapping[str, Any],
    train: Train,
    size: Size,
    batch: int = 1,
    mixed: bool = True,
    checkpointing: bool = True,
    rank: int = 16,
    accumulating: bool = False,
) -> TrainingBytes:
    """Memory of training a widened UNet, counted on fake tensors.

    Args:
        config: of the UNet, before widening.
        train: "all", "attention" or "lora".
        size: of the canvas.
        batch: B on this device.
        mixed: bfloat16 autocast, frozen weights in bfloat16; else all is float32.
        checkpointing: activations computed twice.
        rank: of LoRA's matrices.
        accumulating: the gradients of the micro-batches before are there already while a step runs.
    """
    unet = build_unet(config)
    choose_trained(unet, train, rank, frozen_bf16=mixed)
    weights, trained = _bytes(unet.parameters()), [p for p in unet.parameters() if p.requires_grad]
    if checkpointing:
        unet.enable_gradient_checkpointing()
    if mixed:
        _float_norms(unet)
    with FakeTensorMode():
        given = arguments(_faked(unet), batch, size)
        with Alive([*unet.parameters(), *_tensors(given)]) as seen:
            for _ in range(1 + accumulating):
                before = seen.alive
                with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                    out = unet(**given, return_dict=False)[0]
                activations = seen.alive - before - _bytes([out])
                out.float().square().mean().backward()
                del out
    gradients, elements = _bytes(trained), sum(p.numel() for p in trained)
    steady = weights + 12 * elements  # the moments and the average
    return TrainingBytes(weights, gradients, 8 * elements, 4 * elements, activations, steady + seen.peak)


def zero2_bytes(elements: int, devices: int, step: int) -> int:
    """Memory on each device under DeepSpeed ZeRO-2 (Rajbhandari et al. 2020, arXiv 1910.02054), all weights trained.

    bfloat16 weights on every device; bfloat16 gradients and float32 master weights, moments and average shared out.

    Args:
        elements: of all weights.
        devices: over how many the rest is shared out.
        step: bytes that a step adds, for its activations.
    """
    return 2 * elements + (2 + 4 + 8 + 4) * elements // devices + step


@dataclass(frozen=True)
class InferenceBytes:
    """Memory of a guided try-on: weights of UNet and VAE, and what is alive besides while each runs."""

    unet: int
    unet_peak: int
    vae: int
    decode_peak: int
    tiled_peak: int


def inference_bytes(
    unet_config: Mapping[str, Any], vae_config: Mapping[str, Any], size: Size, person: Size, batch: int = 1
) -> InferenceBytes:
    """Counted on fake tensors: a guided pass (2B) over the canvas in bfloat16; decoding the person in float32.

    Args:
        unet_config: of the UNet, before widening.
        vae_config: of the VAE.
        size: of the canvas.
        person: of the person slot.
        batch: B.
    """
    unet = nn.Module.to(build_unet(unet_config), torch.bfloat16).eval()
    with torch.device("meta"):
        vae = AutoencoderKL(**vae_config).eval()
    with FakeTensorMode(), torch.no_grad():
        given = arguments(_faked(unet), 2 * batch, size)
        with Alive([*unet.parameters(), *_tensors(given)]) as network:
            unet(**given, return_dict=False)
        latents, peaks = torch.randn(batch, vae.config.latent_channels, *person), []
        for tiled in (False, True):
            if tiled:
                vae.enable_tiling()  # the default tile is as large as the picture
                vae.tile_latent_min_size = max(person) // 2
                vae.tile_sample_min_size = vae.tile_latent_min_size * vae_factor(vae)
            with Alive([*_faked(vae).parameters(), latents]) as decoder:
                vae.decode(latents, return_dict=False)
            peaks.append(decoder.peak)
    return InferenceBytes(_bytes(unet.parameters()), network.peak, _bytes(vae.parameters()), *peaks)


def _float_norms(unet: UNet2DConditionModel) -> None:
    """Norms in float32, as CUDA's autocast has them; the CPU's leaves them in bfloat16."""
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.register_forward_pre_hook(lambda _, args: (args[0].float(),))
            for p in module.parameters():
                p.data = p.data.float()


def _faked(module: Any) -> Any:
    """The module with fake tensors of the CPU in place of its meta parameters; inside a FakeTensorMode."""
    for owner in module.modules():
        for name, p in owner.named_parameters(recurse=False):
            setattr(owner, name, nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad))
    return module


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.untyped_storage().nbytes() for t in tensors)


def _tensors(values: Any) -> list[Tensor]:
    return [t for t in tree_leaves(values) if isinstance(t, Tensor)]
