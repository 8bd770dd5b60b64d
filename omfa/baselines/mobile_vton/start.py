"""All that a distillation needs, small and from nothing: what a compact student and its teacher begin with.

    python -m omfa.baselines.mobile_vton.start --records DIR --out DIR [--vae omfa/models/compact/vae] [--size 128x96]

The VAE is a trained one. Text and image encoders are of the published kinds, small, with random weights, and stay so:
they tell phrases and garments apart, and know nothing else of them.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, Dinov2Config, Dinov2Model

from omfa.baselines.mobile_vton.examples import target_phrase
from omfa.baselines.mobile_vton.folder import Parts
from omfa.baselines.mobile_vton.light_unet import PIXELS_PER_LATENT, LightUNet
from omfa.baselines.mobile_vton.prompts import LENGTH, NEGATIVE, PLAIN, TextEncoders, try_on_phrase
from omfa.baselines.mobile_vton.teacher import CONTEXT
from omfa.commands import Parser, check_sides, size_of
from omfa.files import check_writable
from omfa.records.prepared import RecordError, read_records
from omfa.records.worn import clothes
from omfa.weights import read_part

SIZE = (128, 96)
WIDTH = 64  # of contexts: of both text encoders together


def small_networks(size: Sequence[int], channels: int, image_width: int) -> tuple[LightUNet, LightUNet]:
    """TryonNet and GarmentNet of the published shape, narrow.

    Args:
        size: (H, W) of a picture, multiples of 32.
        channels: of the VAE's latents.
        image_width: of the image encoder.
    """
    shared = {
        "sample_size": max(size) // PIXELS_PER_LATENT, "out_channels": channels, "block_out_channels": (32, 64, 128),
        "layers_per_block": 1, "attention_head_dim": (1, 2, 4), "cross_attention_dim": WIDTH,
        "transformer_layers_per_block": (1, 1, 2),
        "norm_num_groups": 8, "use_linear_projection": True, "down_block_kv_heads": 1, "mid_block_kv_heads": 1,
        "up_block_kv_heads": 1, "down_block_ff_mult": 3, "mid_block_ff_mult": 3, "up_block_ff_mult": 3,
        "down_block_resnet_middle_expansion": 2, "mid_block_resnet_middle_expansion": 2,
        "up_block_resnet_middle_expansion": 2, "down_block_use_self_attention": (False, False, True),
        "up_block_use_self_attention": (True, False, False), "mid_block_use_additional_resnet": False,
        "use_rope": True, "width": size[1],
    }  # fmt: skip
    adapter = {"width": 64, "depth": 2, "heads": 2, "head_width": 32, "queries": 8, "in_width": image_width}
    tryon = LightUNet(
        **shared,
        in_channels=2 * channels,
        height=2 * size[0],
        encoder_hid_dim_type="ip_image_proj",
        transformer_block_type="BasicTransformerBlockTryOn",
        adapter=adapter,
    )
    return tryon, LightUNet(**shared, in_channels=channels, height=size[0])


def word_tokenizer(folder: Path, phrases: Iterable[str]) -> CLIPTokenizer:
    """A CLIP tokenizer that knows the words of some phrases, and letters. Its files go into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    known, merges = dict.fromkeys([*letters, *(x + "</w>" for x in letters)]), dict[str, None]()
    for word in sorted({w for p in phrases for w in re.findall(r"[a-z]+", p.lower())}):
        pieces = [*word[:-1], word[-1] + "</w>"]
        whole = pieces[0]
        for piece in pieces[1:]:
            merges[f"{whole} {piece}"] = None
            whole += piece
            known[whole] = None
    words = [*known, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH)


def small_parts(vae: AutoencoderKL, phrases: Iterable[str], folder: Path, size: Sequence[int] = SIZE) -> Parts:
    """All parts; ``folder`` is for the tokenizer's files.

    Args:
        vae: trained.
        phrases: whose words the tokenizer shall know.
        size: (H, W) of a picture.
    """
    tokenizer = word_tokenizer(folder / "tokenizer", phrases)
    shared = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH // 2, "intermediate_size": WIDTH, "num_hidden_layers": 2,
        "num_attention_heads": 2, "projection_dim": WIDTH // 2, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "initializer_range": 0.2,
    }  # fmt: skip
    encoders = [CLIPTextModelWithProjection(CLIPTextConfig(**shared)) for _ in range(2)]
    eye = Dinov2Config(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=224, patch_size=28)
    tryon, garment = small_networks(size, vae.config.latent_channels, eye.hidden_size)
    return Parts(tryon, garment, vae, Dinov2Model(eye).eval(), None, TextEncoders(encoders, [tokenizer, tokenizer]))


def small_teacher(
    parts: str, layers: int = 4, heads: int = 4, head_width: int = 32, size: Sequence[int] = SIZE
) -> SD3Transformer2DModel:
    """A new teacher of SD3's shape for the latents and phrases of a folder of parts.

    Args:
        parts: what this module's command wrote.
        layers, heads, head_width: of the transformer.
        size: (H, W) of a picture.
    """
    vae = AutoencoderKL.load_config(Path(parts) / "vae")
    texts = [CLIPTextConfig.from_pretrained(Path(parts) / f"text_encoder{n}") for n in ("", "_2")]
    side = max(size) // PIXELS_PER_LATENT
    teacher = SD3Transformer2DModel(
        sample_size=side,
        patch_size=2,
        in_channels=vae["latent_channels"],
        out_channels=vae["latent_channels"],
        num_layers=layers,
        attention_head_dim=head_width,
        num_attention_heads=heads,
        joint_attention_dim=sum(t.hidden_size for t in texts),
        caption_projection_dim=heads * head_width,
        pooled_projection_dim=sum(t.projection_dim for t in texts),
        pos_embed_max_size=side // 2,
        qk_norm="rms_norm",
    )
    teacher.register_to_config(**{CONTEXT: LENGTH})  # without the empty places of a third encoder: three times as fast
    return teacher


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 where the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.baselines.mobile_vton.start", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=Path, required=True, help="records folder, for the words of its captions")
    parser.add_argument("--out", type=Path, required=True, help="folder for the parts")
    parser.add_argument("--vae", default="omfa/models/compact/vae", help="folder of a trained VAE")
    parser.add_argument("--size", type=size_of, default=SIZE, help="height x width, multiples of 32")
    args = parser.parse_args(argv)
    try:
        check_sides(args.size)
        check_writable(args.out)
        phrases = [NEGATIVE, *PLAIN.values(), *(try_on_phrase(c, d) for c, d in PLAIN.items())]
        phrases += [target_phrase(r, g.category) for r in read_records(args.records) for g in clothes(r)]
        torch.manual_seed(0)
        small_parts(read_part(AutoencoderKL, Path(args.vae)), phrases, args.out, args.size).write(args.out)
    except (ValueError, RecordError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
