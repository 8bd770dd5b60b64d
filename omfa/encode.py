"""Latents and prompts ahead of training, so that no step of it waits for the VAE or the text encoders.

    python -m omfa.encode --records data/wardrobe --vae runs/compact_vae/model --size 256x192 --out data/latents
    python -m omfa.encode --records data/vitonhd --base SDXL --size 1024x768 --out data/vitonhd_latents [--captions]

Each picture of each record is encoded alone, as training would, and its posterior kept (mean and log-variance, so that
training still draws a fresh sample of every target) in float16: a file a record. Train with
``--data.init_args.latents data/latents``. With ``--base`` the phrases of SDXL's prompts are kept too (5 MB; with
``--captions`` every record's own as well, 1 to 3 MB a record): train with ``text: data/vitonhd_latents`` in the
pipeline's arguments, and neither encoder is loaded. ``--draft surface`` keeps what a pipeline of ``draft: surface`` is
given besides: surface maps and drafts, from the records' body parameters; ``--join rows`` (and ``--accessories``) say
what garments it is given. Each file carries a hash of what it was made
from: what is there and matches is not encoded again, so a killed call goes on, and after records have changed the same
call brings the latents up to date. Files without a hash, of older versions, train as they are, but are encoded again
here. Exit code 0: all well; 1: some records failed, each named; 2: the call was wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from omfa.backbone import fingerprint, posterior, vae_factor
from omfa.bodies.body import load_body
from omfa.canvas import FACE, PERSON, Canvas
from omfa.commands import Parser, count, find_device, size_of
from omfa.components import ACCESSORIES, CLOTHES, Category
from omfa.files import clear_parts, sole, unwritable, write_json
from omfa.images import ImageError
from omfa.pipeline import MOST_PIXELS
from omfa.prompts import KEPT_PHRASES, PromptFiles, Prompts, TextEncoders, phrases, save_whole
from omfa.records.drawn import Drawer
from omfa.records.latents import DRAFTS, Hashes, encoded_file, read_encoding, write_latents
from omfa.records.prepared import Record, RecordError, record_pictures
from omfa.records.shards import Source, open_records
from omfa.records.stream import read_fitted
from omfa.records.worn import wearable
from omfa.sdxl import BASE, CAPTIONS, PROMPTS, load_prompts, load_vae, text_encoders


@torch.no_grad()
def encode_records(
    vae: AutoencoderKL,
    source: Source,
    records: Sequence[Record],
    canvas: Canvas,
    device: str = "cpu",
    drawer: Drawer | None = None,
) -> list[dict[str, Tensor]]:
    """Posteriors of all pictures of some records: name in ``record_files`` to (2C, h, w) float16, a dict a record.

    With a drawer, of what it draws as well (:mod:`omfa.records.drawn`).
    """
    factor = vae_factor(vae)
    sizes = {slot.name: (slot.height * factor, slot.width * factor) for slot in canvas.slots}
    files = [record_pictures(r) for r in records]
    owner = {(n, path): r for r, named in zip(records, files, strict=True) for n, path in named.items()}
    done: dict[tuple[str, str], Tensor] = {}

    def alone(pixels: Tensor, name: str) -> Tensor:
        """In a batch the same picture comes out a little different with every size of it."""
        moments = posterior(vae, pixels[None].to(device))[0].to("cpu", torch.float16)
        if not moments.isfinite().all():
            raise RecordError(f"{name}: the VAE makes NaN or infinity of it: take another VAE")
        return moments.contiguous()

    for key, record in owner.items():  # views of one outfit share their garments, which is what a batch is for
        pixels = read_fitted(source, record, key[0], sizes[FACE if key[0] == FACE else PERSON])
        done[key] = alone(pixels, source.where(key[1]))
    encoded = [{n: done[n, path].clone() for n, path in named.items()} for named in files]
    for record, own in zip(records, encoded, strict=True):
        drawn = {} if drawer is None else drawer.pictures(record)
        own |= {name: alone(pixels, f"{name} of {record.id}") for name, pixels in drawn.items()}
    return encoded


def begin(
    out: Path, vae: str, size: Sequence[int], draft: str = "none", join: str = "canvas", accessories: Sequence[str] = ()
) -> None:
    """Write down what the latents are of, or refuse a folder that holds others.

    Raises:
        RecordError: another VAE or another size made the latents in ``out``.
        Unwritable: nothing can be written there.
    """
    wanted: dict[str, Any] = {"person_size": [int(n) for n in size], "vae": vae, "draft": draft}
    drawn = draft != "none"  # pictures are the same for all
    wanted |= {"join": join if drawn else "canvas", "accessories": list(accessories) if drawn else []}
    path = out / "encoding.json"
    if path.exists():
        if (found := read_encoding(out)) != wanted:
            raise RecordError(f"{out} holds latents of {found}, this call makes {wanted}: give another --out")
        return
    write_json(path, wanted, indent=2)


def encode_prompts(
    out: Path,
    parts: Mapping[str, Any],
    captioned: Sequence[Record],
    device: str,
    join: str = "canvas",
    accessories: Sequence[str] = (),
) -> int:
    """Keep every phrase of a model, and those of some records with their captions; returns how many are there.

    Args:
        out: folder for the latents.
        parts: of :func:`omfa.sdxl.text_encoders`.
        captioned: records whose captions are wanted.
        device: where to encode.
        join, accessories: of the model.

    Raises:
        RecordError: other encoders made the phrases in ``out``.
    """
    encoders = [parts[name].to(device).eval() for name in ("text_encoder", "text_encoder_2")]
    texts = TextEncoders([parts["tokenizer"], parts["tokenizer_2"]], encoders)
    mark, captions = fingerprint(*encoders), PromptFiles(out / CAPTIONS)
    plain = phrases((*CLOTHES, *map(Category, accessories)))
    if not (out / PROMPTS).exists():
        save_whole(Prompts.of(plain, texts, mark, device), out / PROMPTS)
    kept = load_prompts(out)
    if {kept.config.encoders, *captions.encoders} != {mark}:
        raise RecordError(f"{out} holds phrases of other text encoders: give another --out")
    wanted = [p for p in plain if p not in kept]  # by an older version, or for a model of fewer accessories
    for record in captioned:
        worn = [g.category for g in wearable(record, join, accessories).values()]
        wanted += phrases(worn, record.caption) if record.caption else []
    todo = [p for p in dict.fromkeys(wanted) if p not in captions.where]
    for at in tqdm(range(0, len(todo), KEPT_PHRASES), unit="file of phrases", disable=None):
        captions.add(Prompts.of(todo[at : at + KEPT_PHRASES], texts, mark, device))
    return len(kept.config.phrases) + len(captions.where)


def main(args: Sequence[str] | None = None) -> int:
    """Encode; exit codes as in the module's docstring."""
    parser = Parser(prog="python -m omfa.encode", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--records", required=True, type=Path, help="records, as files or shards")
    parser.add_argument("--vae", help="folder or hub id of a diffusers AutoencoderKL; without it --base's own")
    parser.add_argument("--base", help=f"folder or hub id of SDXL, like {BASE}: its prompts are kept too")
    parser.add_argument("--variant", help='of the base\'s files: "fp16" reads the half-precision ones')
    parser.add_argument("--captions", action="store_true", help="also the phrases with each record's caption")
    parser.add_argument("--size", required=True, type=size_of, help="of a person picture, HxW: the model's person_size")
    parser.add_argument("--out", required=True, type=Path, help="folder for the latents")
    parser.add_argument("--draft", choices=DRAFTS, default="none", help="surface: drafts and surface maps, too")
    parser.add_argument("--join", choices=("canvas", "rows"), default="canvas", help="of the model (default canvas)")
    learns = "what the model learns beside clothes, in rows: phrases and drafts with them, too"
    parser.add_argument("--accessories", nargs="+", choices=[*ACCESSORIES], default=[], help=learns)
    parser.add_argument("--split", help="only records of this split")
    parser.add_argument("--batch", type=count, default=8, help="records at once; what they share is encoded once")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: cuda where there is one)")
    call = parser.parse_args(args)
    try:
        if call.vae is None and call.base is None:
            raise ValueError("give --vae, or --base for SDXL")
        if call.accessories and call.join != "rows":
            raise ValueError("--accessories are for models in rows: give --join rows, too")
        model = {"join": call.join, "accessories": [str(a) for a in call.accessories]}
        device = find_device(call.device)
        if call.base is None and not Path(call.vae, "config.json").is_file() and not _may_be_hub_id(call.vae):
            raise ValueError(f"--vae {call.vae!r} holds no VAE (no config.json): give a folder or hub id that does")
        vae = load_vae(call.base or BASE, call.vae, call.variant).to(device).eval()
        factor = vae_factor(vae)
        if any(n % factor or not 0 < n <= MOST_PIXELS for n in call.size):
            size = f"--size {call.size[0]}x{call.size[1]}"
            raise ValueError(f"{size}: both must be multiples of {factor} up to {MOST_PIXELS}")
        canvas = Canvas((call.size[0] // factor, call.size[1] // factor), multiple=1)
        source = open_records(call.records)
        records = source.records(call.split)
        if not records:
            which = "" if call.split is None else f" of split {call.split!r}"
            raise ValueError(f"{call.records} holds no records{which}: there is nothing to encode")
        drawer = Drawer(source, call.size, load_body(), **model) if call.draft == "surface" else None
        if drawer is not None and (bare := len(_without_body(records))):
            print(
                f"{bare} shop pictures have no body of their own and are drawn with their category's, which sampling "
                "does better: python -m data_prep garment-poses predicts them",
                file=sys.stderr,
            )
        with sole(call.out):
            clear_parts(call.out)
            begin(call.out, fingerprint(vae), call.size, call.draft, **model)
            if call.base is not None:
                encoders = text_encoders(call.base, call.variant)
                kept = encode_prompts(call.out, encoders, records if call.captions else (), device, **model)
                print(f"{kept} phrases kept in {call.out}")
            failed = encode_all(vae, source, records, canvas, call.out, call.batch, device, drawer)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, SafetensorError) as e:
        print(f"error: {unwritable(call.out, e) if isinstance(e, SafetensorError) else e}", file=sys.stderr)
        return 2
    print("\n".join(failed), file=sys.stderr, end="\n" if failed else "")
    print(f"{len(records) - len(failed)} records encoded in {call.out}, {len(failed)} failed")
    return 1 if failed else 0


def _without_body(records: Sequence[Record]) -> set[str]:
    """Shop pictures of clothes whose body no record tells."""
    garments = (g for record in records for g in record.garments)
    return {g.path for g in garments if g.pose is None and g.kind == "shop" and g.category in CLOTHES}


def _may_be_hub_id(name: str) -> bool:
    return name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists()


def encode_all(
    vae: AutoencoderKL,
    source: Source,
    records: Sequence[Record],
    canvas: Canvas,
    out: Path,
    batch: int,
    device: str,
    drawer: Drawer | None = None,
) -> list[str]:
    """Write the latents of every record whose file is missing or of other pictures; the failures, a line each.

    Raises:
        Unwritable: ``out`` can't be written to any more.
    """
    hashes, failed = Hashes(source, drawn=drawer is not None), list[str]()
    todo = [r for r in records if not hashes.match(r, encoded_file(out, r.id))]
    with tqdm(total=len(records), initial=len(records) - len(todo), unit="record", disable=None) as bar:
        for at in range(0, len(todo), batch):
            some = todo[at : at + batch]
            try:
                write_latents(out, some, encode_records(vae, source, some, canvas, device, drawer), hashes)
            except (ImageError, RecordError):  # one bad picture does not spoil its neighbours
                for record in some:
                    try:
                        made = encode_records(vae, source, [record], canvas, device, drawer)
                        write_latents(out, [record], made, hashes)
                    except (ImageError, RecordError) as e:
                        failed.append(f"{record.id}: {e}")
            bar.update(len(some))
    return failed


if __name__ == "__main__":
    sys.exit(main())
