"""What things cost on this machine: one table. And what full-size SDXL costs: counted anywhere, measured on a GPU.

    python -m omfa.bench --records data/demo [--model compact] [--repeats 5]
    python -m omfa.bench --full-size          # SDXL at 768x1024; some minutes, no weights needed

The first measures the loader, training and sampling as users run them, and beside OMFA's canvas the dual-UNet design
(:mod:`omfa.bench.dual_unet`) at the same sizes. The second counts operations and bytes (:mod:`omfa.bench.costs`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from diffusers import AutoencoderKL

from omfa.backbone import posterior
from omfa.bench import costs
from omfa.bench.costs import Design, Size
from omfa.canvas import FACE, PERSON, Canvas
from omfa.components import Category
from omfa.pipeline import OMFAPipeline
from omfa.records.latents import write_latents
from omfa.records.prepared import METADATA, FaceRef, GarmentRef, PoseRef, Record
from omfa.training.examples import Batch, ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.module import OMFAModule
from omfa.training.precision import CANDIDATES, gradients, product_rate, trial
from omfa.tuning import Train, choose_trained

Row = tuple[str, float, str]  # what, how much, unit
SDXL_PERSON = (128, 96)  # latents of 768x1024


def median_seconds(run: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median seconds of ``run`` over ``repeats`` calls, after one that does not count; the GPU's work is waited for."""
    seconds = []
    for _ in range(repeats + 1):
        began = clock()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(clock() - began)
    return statistics.median(seconds[1:])


def matmul_rate(device: str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Measured matrix multiplication rate, FLOP/s."""
    n = 8192 if device == "cuda" else 512
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / median_seconds(lambda: a @ a, 20 if device == "cuda" else 3)


def random_latents(folder: Path, canvas: Canvas, channels: int, factor: int, records: int = 32) -> RecordsDataset:
    """Records of a person, a garment, a face and a pose, whose latents are random numbers in the true layout."""
    sizes = {"person": canvas.person, "upper": canvas.person, "pose_map": canvas.person}
    sizes["face"] = canvas[FACE].height, canvas[FACE].width
    made = [
        Record(f"r{i}", "train", f"p{i}", f"o{i}", "p.png", FaceRef("f.png"), (GarmentRef(Category.UPPER, "g.png"),),
               PoseRef("m.png"))
        for i in range(records)
    ]  # fmt: skip
    (folder / METADATA).write_text("".join(r.to_json() + "\n" for r in made))
    latents = folder / "latents"
    for record in made:
        write_latents(latents, [record], [{n: torch.randn(2 * channels, *s).half() for n, s in sizes.items()}])
    person = [n * factor for n in canvas.person]
    (latents / "encoding.json").write_text(json.dumps({"person_size": person, "vae": "random"}))
    return RecordsDataset(folder, Geometry(canvas, factor, channels), ExampleOptions(latents=latents))


def loading(name: str, data: RecordsDataset, batch: int, repeats: int) -> Row:
    """Records per second of one core: of CPU time, so that other work on the machine does not count."""
    numbers = itertools.count()

    def load() -> object:
        return collate([data[divmod(next(numbers), len(data))] for _ in range(batch)])

    return f"loader, {name}", batch / median_seconds(load, repeats, time.process_time), "records/s of a core"


def training_step(design: Design, batch: int, device: str) -> Callable[[], None]:
    """Forward, backward and AdamW of what is marked as trained; on a GPU under bfloat16 autocast."""
    trained = [p for p in design.trained.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-6, fused=device == "cuda")

    def run() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            prediction = design.plain(batch)
        prediction.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


@torch.no_grad()
def guided_step(design: Design) -> None:
    """One sampling step with guidance, batch 1, in the network's own dtype."""
    design.guided(1)


def both_designs(config: Mapping[str, Any], canvas: Canvas) -> list[Callable[[str], Design]]:
    """Makers, by device, of the canvas and of two UNets at the same sizes: person, and garments side by side."""
    h, w = canvas.person
    return [
        lambda device: costs.canvas_design(config, canvas.size, device),
        lambda device: costs.dual_design(config, (h, w), (h, w * canvas.garments), device),
    ]


def in_rows(canvas: Canvas, config: Mapping[str, Any], device: str) -> costs.RowsDesign:
    """The same try-on in rows."""
    face = canvas[FACE]
    return costs.rows_design(config, canvas.person, canvas.garments, (face.height, face.width), device)


def beside(config: Mapping[str, Any], canvas: Canvas, batch: int, repeats: int) -> Iterator[Row]:
    """The network alone, float32 on the CPU: the canvas, and two UNets at the same sizes."""
    rate = matmul_rate()
    for make in both_designs(config, canvas):
        counted, design = costs.count_flops(make("meta")), make("cpu")
        seconds = median_seconds(training_step(design, batch, "cpu"), repeats)
        done = counted.training * batch / seconds
        yield f"{design.name}: training step, batch {batch}", seconds, "s"
        yield "  achieved", done / 1e9, f"GFLOP/s, {done / rate:.0%} of a matrix product's"
        design.network.eval()
        yield "  guided step", median_seconds(lambda d=design: guided_step(d), repeats), "s"  # type: ignore[misc]
        yield "  operations of both", (counted.training + counted.guided) / 1e9, "GFLOP (batch 1)"
    for garments in (1, 2, 4):
        yield from pictures(config, canvas.person, garments, repeats)


@torch.no_grad()
def pictures(config: Mapping[str, Any], person: Size, garments: int, repeats: int) -> Iterator[Row]:
    """A whole try-on of the network alone, unguided, float32 on the CPU: rows, a canvas so wide, two UNets."""
    (h, w), face = person, Canvas(person, 1)[FACE]
    rows = costs.rows_design(config, person, garments, (face.height, face.width), "cpu")
    canvas = costs.canvas_design(config, (h, (1 + garments) * w + face.width), "cpu")
    two = costs.dual_design(config, person, (h, garments * w), "cpu")
    once = median_seconds(rows.given, repeats)

    def both() -> None:
        rows.given()
        rows.target()

    def plain(design: Design) -> Callable[[], object]:
        design.network.eval()
        return lambda: design.plain(1)

    for name, network, before, step, whole in (
        ("rows", rows.network, once, rows.target, both),
        ("canvas", canvas.network, 0.0, plain(canvas), plain(canvas)),
        ("two UNets", two.network, 0.0, plain(two), plain(two)),
    ):
        seconds, what = median_seconds(step, repeats), f"{garments} garment{'s' * (garments > 1)}, {name}"
        for steps in (8, 50):
            yield f"{what}: {steps} steps, unguided", before + steps * seconds, "s"
        yield "  memory beside the weights", costs.peak_bytes(network, whole) / 2**20, "MiB"


def encoded(module: OMFAModule, batch: Batch) -> Batch:
    """A batch of pictures as it would come from latents, so that a step is the network's alone."""

    def moments(pixels: torch.Tensor) -> torch.Tensor:
        return posterior(module.pipe.vae, pixels)

    with torch.no_grad():
        pixels, drawn = ({name: moments(p) for name, p in d.items()} for d in (batch.pixels, batch.drawn))
        return replace(batch, pixels=pixels, pose=moments(batch.pose), drawn=drawn, encoded=True)


def arithmetic(module: OMFAModule, batch: Batch) -> Iterator[Row]:
    """Forward and backward passes in each arithmetic that may be the fastest, by the trial that a run begins with.

    Operations are counted with attention by plain products: torch has no formula for the CPU's fused kernel.
    """
    rates = {dtype: product_rate(dtype) for dtype in (torch.float32, torch.bfloat16)}
    for dtype, rate in rates.items():
        yield f"matrix product, {str(dtype)[6:]}", rate / 1e9, "GFLOP/s of a core"
    operations, took = costs.flops(lambda: gradients(module, batch, CANDIDATES[1])), trial(module, batch)
    for how in CANDIDATES:
        seconds = took.get(how, float("nan"))
        yield f"training, {how}", len(batch.id) / seconds, "records/s of a core" if how in took else "not worth trying"
        if how in took:
            share = operations / seconds / rates[how.dtype]
            yield "  achieved", operations / seconds / 1e9, f"GFLOP/s of a core, {share:.0%} of the matrix product's"


def measure(module: OMFAModule, data: RecordsDataset, batch: int, steps: int, repeats: int) -> Iterator[Row]:
    """Rows of the table for this machine."""
    pipe = module.pipe
    canvas, factor = pipe.canvas, pipe.vae_scale_factor
    yield "threads", torch.get_num_threads(), ""
    yield loading("pictures", data, batch, repeats)
    for name, plane, f in (("latents", canvas, factor), ("latents of 768x1024", Canvas(SDXL_PERSON, 1), 8)):
        with tempfile.TemporaryDirectory() as folder:
            yield loading(name, random_latents(Path(folder), plane, 4, f), batch, 10 * repeats)
    example = collate([data[0, i % len(data)] for i in range(batch)])
    yield from arithmetic(module, encoded(module, example))
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 1e-6)

    def train() -> None:
        module.losses(example).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    yield f"training step from pictures, batch {batch}", median_seconds(train, repeats), "s"
    module.eval()
    pipe.set_progress_bar_config(disable=True)
    person = np.zeros((canvas[PERSON].height * factor, canvas[PERSON].width * factor, 3), np.uint8)
    options: dict[str, Any] = {"num_inference_steps": steps}
    how = "distilled" if pipe.config.distilled else "guided"
    yield f"try-off, {steps} {how} steps", median_seconds(lambda: pipe.try_off(person, **options), 3), "s a picture"
    seconds = median_seconds(lambda: pipe.try_on(None, {"upper": person}, person, **options), 3)
    yield f"try-on, {steps} {how} steps", seconds, "s a picture"
    yield "peak memory of this process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"
    yield from beside(pipe.unet.config, canvas, batch, repeats)


def counted_flops(config: Mapping[str, Any], person: Size) -> Iterator[str]:
    """Operations canvas by canvas, beside the dual-UNet's; in words where the canvas costs more."""
    h, w = person
    one, two = Canvas(person, 1), Canvas(person, 2)
    yield f"{'counted, batch 1, TFLOP':46}{'forward':>9}{'training':>10}{'guided':>9}"
    of = {}
    for name, design in {
        "person alone": costs.canvas_design(config, person),
        "person | garment": costs.canvas_design(config, (h, 2 * w)),
        "person | garment | face (one_garment)": costs.canvas_design(config, one.size),
        "the same, unconditional on the person alone": costs.canvas_design(config, one.size, targets=person),
        "two UNets, one garment": costs.dual_design(config, person, person),
        "person | garment | garment | face": costs.canvas_design(config, two.size),
        "two UNets, two garments": costs.dual_design(config, person, (h, 2 * w)),
    }.items():
        f = of[name] = costs.count_flops(design)
        yield f"{name:46}{f.forward / 1e12:9.2f}{f.training / 1e12:10.2f}{f.guided / 1e12:9.2f}"
    for ours, theirs in (
        ("person | garment", "two UNets, one garment"),
        ("person | garment | face (one_garment)", "two UNets, one garment"),
        ("person | garment | garment | face", "two UNets, two garments"),
    ):
        a, b = of[ours], of[theirs]
        words = [
            "costs more than" if x > y else "costs no more than"
            for x, y in ((a.training, b.training), (a.guided, b.guided))
        ]
        yield (
            f"{ours}: a training step {words[0]} {theirs} ({a.training / b.training:.2f} times), "
            f"a guided step {words[1]} it ({a.guided / b.guided:.2f} times)"
        )


def counted_few_steps(config: Mapping[str, Any], person: Size) -> Iterator[str]:
    """Passes of a network and operations of a whole try-on, without the VAE: guided, and distilled to few steps."""
    h, w = person
    yield f"{'counted, a try-on without the VAE':46}{'steps':>7}{'passes':>8}{'TFLOP':>9}"
    for garments, words in ((1, "one garment"), (2, "two garments")):
        canvas = Canvas(person, garments)
        one = costs.count_flops(costs.canvas_design(config, canvas.size))
        two = costs.count_flops(costs.dual_design(config, person, (h, garments * w)))
        rows = in_rows(canvas, config, "meta")
        given, target, alone = (costs.flops(run) for run in (rows.given, rows.target, rows.alone))
        # passes and operations of a picture, of a guided step and of a plain one
        for name, once, guided, plain in (
            ("canvas", (0, 0), (2, one.guided), (1, one.forward)),
            ("rows", (1, given), (2, target + alone), (1, target)),
            ("two UNets", (0, 0), (3, two.guided), (2, two.forward)),
        ):
            for kind, steps, each in (("guided", 50, guided), ("distilled", 8, plain), ("distilled", 4, plain)):
                passes, operations = (a + steps * b for a, b in zip(once, each, strict=True))
                yield f"{f'{name}, {words}, {kind}':46}{steps:7}{passes:8}{operations / 1e12:9.2f}"


def counted_bytes(config: Mapping[str, Any], vae: Mapping[str, Any], person: Size, devices: int = 4) -> Iterator[str]:
    """Memory of training and of a try-on on the canvas of one garment, batch 1."""
    canvas, gb = Canvas(person, 1), 1e9
    heads = ("weights", "gradients", "AdamW", "average", "kept", "peak")
    yield f"{'counted, batch 1, GB':46}" + "".join(f"{h:>10}" for h in heads)
    for train, mixed, checkpointing in [
        ("all", False, True),
        *itertools.product(get_args(Train), (True,), (False, True)),
    ]:
        b = costs.training_bytes(config, train, canvas.size, mixed=mixed, checkpointing=checkpointing)
        name = f"{train}, {'bf16 autocast' if mixed else 'fp32'}{', checkpointing' if checkpointing else ''}"
        cells = (b.weights, b.gradients, b.optimizer, b.ema, b.activations, b.peak)
        yield f"{name:46}" + "".join(f"{c / gb:10.2f}" for c in cells)
    step = b.peak - b.weights - b.optimizer - b.ema  # LoRA's: hardly more than activations
    elements = sum(p.numel() for p in costs.build_unet(config).parameters())
    zero = costs.zero2_bytes(elements, devices, step)
    yield f"{f'all, ZeRO-2 over {devices}, checkpointing':46}{zero / gb:60.2f}"
    i = costs.inference_bytes(config, vae, canvas.size, person)
    yield f"{'guided step, bf16':46}{i.unet / gb:10.2f}{(i.unet + i.unet_peak) / gb:50.2f}"
    for name, peak in (("decoding, fp32", i.decode_peak), ("decoding, fp32, tiled", i.tiled_peak)):
        yield f"{name:46}{i.vae / gb:10.2f}{(i.vae + peak) / gb:50.2f}"


def measured(
    config: Mapping[str, Any], vae: Mapping[str, Any], person: Size, device: str, repeats: int
) -> Iterator[str]:
    """Steps of random weights made on ``device``: seconds, FLOP/s, share of its matrix product, peak memory."""
    canvas, dtype = Canvas(person, 1), torch.bfloat16 if device == "cuda" else torch.float32
    rate = matmul_rate(device, dtype)
    yield f"measured on {device}, batch 1; matrix product, {str(dtype)[6:]}: {rate / 1e12:.3g} TFLOP/s"

    def line(name: str, run: Callable[[], object], flops: int) -> str:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            seconds = median_seconds(run, repeats)
        except torch.OutOfMemoryError:
            return f"{name:46}   does not fit"
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else float("nan")
        done = flops / seconds
        return f"{name:46}{seconds:9.3f} s{done / 1e12:9.3g} TFLOP/s{done / rate:6.0%}{peak / 1e9:9.2f} GB"

    for dual, make in enumerate(both_designs(config, canvas)):
        for train, checkpointing in itertools.product(get_args(Train), (True, False)):
            if dual and train != "all":
                continue
            designs = make("meta"), make(device)
            for design in designs:
                choose_trained(design.trained, train)
                for p in design.network.parameters():
                    if device == "cuda" and not p.requires_grad:
                        p.data = p.data.to(torch.bfloat16)
            if checkpointing:
                designs[1].trained.enable_gradient_checkpointing()
            counted = costs.count_flops(designs[0]).training
            name = f"{designs[1].name}, {train}{', checkpointing' if checkpointing else ''}"
            yield line(name, training_step(designs[1], 1, device), counted)
            del design, designs
        design = make(device)
        design.network.to(dtype).eval()
        decoder = AutoencoderKL(**vae).to(device).eval()
        z = torch.randn(1, decoder.config.latent_channels, *person, device=device)
        counted = costs.count_flops(make("meta")).guided
        yield line(f"{design.name}, guided step", lambda d=design: guided_step(d), counted)  # type: ignore[misc]

        @torch.no_grad()
        def try_on(design: Design = design, decoder: Any = decoder, z: torch.Tensor = z) -> None:
            for _ in range(50):
                guided_step(design)
            decoder.decode(z)

        yield line(f"{design.name}, 50 guided steps, decoded", try_on, 50 * counted)
        del design, decoder, try_on


def full_size(
    config: Mapping[str, Any], vae: Mapping[str, Any], person: Size, devices: Sequence[str], repeats: int = 5
) -> Iterator[str]:
    """Lines of the table for a full-size network: counted, then measured on each of ``devices``."""
    yield from counted_flops(config, person)
    yield from counted_few_steps(config, person)
    yield from counted_bytes(config, vae, person)
    for device in devices:
        yield from measured(config, vae, person, device, repeats)


def main(args: Sequence[str] | None = None) -> int:
    """Print the table; 0 all well, 2 the call was wrong."""
    parser = argparse.ArgumentParser(prog="python -m omfa.bench", description=(__doc__ or "").split("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--records", help="a records folder: measure this machine on it")
    what.add_argument("--full-size", action="store_true", help="SDXL at 768x1024: count, and measure on a GPU")
    parser.add_argument("--model", default="compact", help="a model that ships, a folder or a hub id")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of the sampler (default 20; a distilled model's own)")
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement (default 5)")
    call = parser.parse_args(args)
    if call.full_size:
        devices = ["cuda"] if torch.cuda.is_available() else []
        for line in full_size(costs.SDXL_UNET, costs.SDXL_VAE, SDXL_PERSON, devices, call.repeats):
            print(line, flush=True)
        return 0
    try:
        pipe = OMFAPipeline.from_pretrained(call.model)
        records = RecordsDataset(call.records, Geometry.of(pipe), ExampleOptions(split=None))
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    steps = call.steps or (pipe.config.default_steps if pipe.config.distilled else 20)
    for what_, value, unit in measure(OMFAModule(pipe), records, call.batch, steps, call.repeats):
        print(f"{what_:72}{value:10.3g} {unit}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
