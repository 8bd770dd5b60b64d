"""Latents, image features and phrases of a records folder, made ahead of training.

    python -m omfa.baselines.mobile_vton.encode --records DIR --model DIR --out DIR [--size 1024x768]

Records that are there are not made again, so a killed call goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from omfa import images
from omfa.backbone import fingerprint, posterior
from omfa.baselines.mobile_vton.examples import ENCODING, NOTHING, PROMPTS, encoded_file, target_phrase
from omfa.baselines.mobile_vton.pipeline import SIZE, MobileVTON
from omfa.baselines.mobile_vton.prompts import NEGATIVE, PLAIN, PromptBook, TextEncoders, try_on_phrase
from omfa.commands import Parser, find_device, size_of
from omfa.files import check_writable, clear_parts, sole, whole, write_json
from omfa.records.latents import MADE_FROM, Hashes
from omfa.records.prepared import RecordError, garment_roles, read_records, record_pictures, resolve
from omfa.records.shards import RecordFolder
from omfa.records.worn import clothes


@torch.no_grad()
def encode_records(pipe: MobileVTON, folder: Path, out: Path, size: Sequence[int] = SIZE) -> int:
    """Encode every record's person and garments, and every phrase that training will use.

    Args:
        pipe: VAE, image encoder and text encoders.
        folder: a records folder.
        out: where to.
        size: (H, W) of the pictures, multiples of 32.

    Returns:
        How many records there are.

    Raises:
        ValueError: no text encoders, or ``out`` holds another size's or VAE's.
        RecordError: a record that can't be used.
    """
    if not isinstance(pipe.parts.texts, TextEncoders):
        raise ValueError("encoding needs the model's text encoders, and its folder has none")
    records = read_records(folder)
    about = {"size": list(size), "vae": fingerprint(pipe.parts.vae)}
    encoding = out / ENCODING
    check_writable(out)
    if encoding.is_file() and json.loads(encoding.read_text()) != about:
        raise ValueError(f"{encoding} is of another size or VAE; give another --out")
    write_json(encoding, about)  # before all else: a killed call must not go on at another size
    phrases = [NEGATIVE, *PLAIN.values(), *(try_on_phrase(c, d) for c, d in PLAIN.items())]
    phrases += [target_phrase(r, g.category) for r in records for g in clothes(r)]
    PromptBook.of(phrases, pipe.parts.texts).write(out / PROMPTS)
    _, nothing = pipe.features(torch.zeros(1, 3, *size, device=pipe.device))
    with whole(out / NOTHING) as part:
        save_file({"features": nothing[0].half().cpu().contiguous()}, part)
    hashes = Hashes(RecordFolder(folder))
    for record in tqdm(records, disable=pipe.quiet):
        if hashes.match(record, encoded_file(out, record.id)):
            continue
        made = {}
        for name, file in record_pictures(record).items():
            if name in ("face", "pose_map"):
                continue
            garment = name in garment_roles(record)
            picture = resolve(folder, file)
            raw = images.decode_pixels(images.read_file(picture), str(picture))
            pixels = images.fit_pixels(raw, size, "white" if garment else "edge")[0][None].to(pipe.device)
            made[name] = posterior(pipe.parts.vae, pixels)[0].half().cpu().contiguous()
            if garment:
                made[f"{name}.features"] = pipe.features(pixels)[0][0].half().cpu().contiguous()
        with whole(encoded_file(out, record.id)) as part:
            save_file(made, part, {MADE_FROM: hashes.of(record)})
    return len(records)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 where the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.baselines.mobile_vton.encode", description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=Path, required=True, help="records folder")
    parser.add_argument("--model", type=Path, required=True, help="folder of the published layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--size", type=size_of, default=SIZE, help="height x width, like 1024x768")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args(argv)
    try:
        pipe = MobileVTON.from_pretrained(args.model).to(find_device(args.device))
        with sole(args.out):
            clear_parts(args.out)
            encode_records(pipe, args.records, args.out, args.size)
    except (ValueError, RecordError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
