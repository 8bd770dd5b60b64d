"""Try-on without torch: the runner of one file makes the pipelines' own pictures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch.nn import functional as F

from omfa import device, images
from omfa.bodies.body import load_body
from omfa.bodies.standing import standing
from omfa.composer import TASKS, Composer
from omfa.export import main as export
from omfa.graphs import onnx_graph
from omfa.graphs.drawn import drawn
from omfa.graphs.rows_model import write_graphs
from omfa.pipeline import OMFAPipeline
from tests.conftest import SIZE, make_compact

pytest.importorskip("onnxruntime")
LARGE = (SIZE[0] * 3 // 2, SIZE[1] * 3 // 2)  # three times what the composer sees: no mean of a mask is a half


def picture(path: Path, size: tuple[int, int], seed: int) -> Path:
    """A smooth picture of random colours, (width, height)."""
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (6, 5, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="module")
def model() -> OMFAPipeline:
    made = make_compact(join="rows", draft="surface", pose_style="surface", portraits=True)
    made.register_modules(composer=Composer([8, 8, 8], size=(32, 24), shrink=1, decoded=TASKS))
    torch.nn.init.normal_(made.composer.last[2].weight, std=0.2)
    return made


@pytest.fixture(scope="module")
def folder(model: OMFAPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("device")
    write_graphs(model, out, large=LARGE)
    return out


@pytest.mark.parametrize("category, guidance", [("upper", 1.0), ("lower", 2.0)])
def test_the_same_picture_as_the_pipelines(
    model: OMFAPipeline, folder: Path, tmp_path: Path, category: str, guidance: float
) -> None:
    photo = picture(tmp_path / "photo.png", LARGE[::-1], 0)
    garment = picture(tmp_path / "garment.png", (60, 40), 1)
    pose = standing(load_body(), "dress", LARGE)
    wanted = model(
        targets=["person"],
        portrait=photo,
        garments={category: garment},
        pose=pose,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    shown = drawn(model, photo, garment, category, pose, LARGE)
    assert set(shown) > {"pose", "garment_map", "draft", "large_where"}
    pictures = device.read(photo), device.read(garment)
    made = device.try_on(device.Model(folder, 1), *pictures, category, 3, guidance, 5, shown)
    assert made.size == wanted.size == LARGE[::-1]
    assert np.abs(np.asarray(made).astype(int) - np.asarray(wanted)).max() <= 1


def test_one_file_alone_without_torch(folder: Path, tmp_path: Path) -> None:
    shutil.copy(device.__file__, tmp_path / "device.py")
    photo, garment = picture(tmp_path / "a.png", (40, 60), 0), picture(tmp_path / "b.jpg", (50, 50), 1)
    np.savez(tmp_path / "drawn.npz", draft=np.zeros((3, *device.Model(folder).size), np.float32))
    options = ["--model", str(folder), "--drawn", "drawn.npz", "--steps", "1", "--threads", "1", "--out", "c.png"]
    call = ["device", str(photo), str(garment), *options]
    program = f"import sys; sys.argv = {call!r}; import device; code = device.main(); "
    program += "sys.exit(code or sorted({'torch', 'omfa', 'diffusers', 'cv2', 'scipy'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "c.png").width > 8
    told = subprocess.run(
        [sys.executable, "-c", "import sys, omfa.device; sys.exit('torch' in sys.modules)"], capture_output=True
    )
    assert told.returncode == 0


def test_noise_and_levels_are_torchs() -> None:
    for shape in ((1, 4, 8, 6), (1, 3, 7, 5)):
        generator, noise = torch.Generator().manual_seed(11), device.Noise(11)
        for _ in range(2):
            wanted = torch.randn(*shape, generator=generator).numpy()
            np.testing.assert_allclose(noise.normal(*shape), wanted, atol=1e-6)
    flow = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    ddim = DDIMScheduler(timestep_spacing="trailing", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    alphas = ddim.alphas_cumprod.numpy()
    for steps in (1, 2, 7, 28):
        flow.set_timesteps(steps)
        np.testing.assert_allclose(device.flow_levels(steps, 3.0), flow.sigmas.numpy(), atol=1e-6)
        ddim.set_timesteps(steps)
        assert [t for t, _, _ in device.ddim_levels(alphas, steps)] == ddim.timesteps.tolist()


@pytest.mark.parametrize("size", [(500, 300), (20, 33), (128, 96)])
def test_pictures_are_fitted_as_elsewhere(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    for white in (False, True):
        made, box = device.fit(pixels, (128, 96), white)
        wanted, there = images.fit_pixels(pixels, (128, 96), "white" if white else "edge")
        assert (box.top, box.left, box.height, box.width) == (there.top, there.left, there.height, there.width)
        np.testing.assert_allclose(made[0], wanted.numpy(), atol=2e-5)


def test_resizes_as_products_are_torchs() -> None:
    x = torch.randn(1, 2, 37, 20)
    for size in ((9, 7), (37, 5)):
        wanted = F.interpolate(x, size, mode="bilinear", antialias=True), F.adaptive_avg_pool2d(x, size)
        with onnx_graph._as_products():
            made = F.interpolate(x, size, mode="bilinear", antialias=True), F.adaptive_avg_pool2d(x, size)
        for a, b in zip(made, wanted, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numbers, least", [("float16", 45), ("int8", 30)])
def test_weights_in_less_are_smaller_and_nearly_as_good(
    model: OMFAPipeline, folder: Path, tmp_path: Path, numbers: str, least: float
) -> None:
    model.save_pretrained(tmp_path / "model")
    whole, small = str(tmp_path / "model"), str(tmp_path / "small")
    assert export(["--model", whole, "--runtime", "onnx", "--dtype", numbers, "--out", small]) == 0
    sizes = [sum(p.stat().st_size for p in f.glob("*.weights")) for f in (folder, tmp_path / "small")]
    assert sizes[1] < (0.6 if numbers == "float16" else 0.4) * sizes[0]
    photo, garment = (np.random.default_rng(i).integers(0, 256, (64, 48, 3), np.uint8) for i in range(2))
    made = [device.try_on(device.Model(f, 1), photo, garment, steps=2, drawn={}) for f in (folder, tmp_path / "small")]
    error = np.square(np.asarray(made[0]).astype(float) - np.asarray(made[1])).mean()
    assert 10 * np.log10(255**2 / max(error, 1e-9)) > least


def test_damaged_files_are_named_not_thrown(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo, other = str(picture(tmp_path / "a.png", (40, 60), 0)), tmp_path / "other"
    files = {name: tmp_path / name for name in ("good.npz", "empty.npz", "cut.npz", "one.npy", "small.npz")}
    np.savez(files["good.npz"], draft=np.zeros((3, *device.Model(folder).size), np.float32))
    np.savez(files["small.npz"], draft=np.zeros((3, 8, 8), np.float32))
    np.save(files["one.npy"], np.zeros(3))
    files["empty.npz"].touch()
    files["cut.npz"].write_bytes(files["good.npz"].read_bytes()[:99])

    def refused(words: str, model: Path, drawn: Path = files["good.npz"], out: str = "c.png", *more: str) -> None:
        options = ["--drawn", str(drawn), "--out", str(tmp_path / out), "--steps", "1", "--threads", "1", *more]
        assert device.main([photo, photo, "--model", str(model), *options]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said

    for name, content, words in (
        ("device.json", b"[]", "is no exported model"),
        ("device.json", b'{"kind": "rows"}', "is no exported model"),
        ("device.json", b'{"kind": "else", "size": [8, 8]}', "is no exported model"),
        ("arrays.npz", b"", "no arrays that can be read (EOFError"),
        ("arrays.npz", files["cut.npz"].read_bytes(), "no arrays that can be read"),
        ("arrays.npz", files["good.npz"].read_bytes(), "lacks alphas, tokens"),
        ("encode.onnx", None, "encode.onnx can't be loaded"),
        ("encode.onnx", b"no graph", "encode.onnx can't be loaded"),
        ("encode.weights", None, "encode.onnx can't be loaded"),
        ("encode.weights", b"1", "encode.onnx can't be loaded"),
    ):
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(folder, other)
        (other / name).unlink()
        if content is not None:
            (other / name).write_bytes(content)
        refused(words, other)
    for name in ("empty.npz", "cut.npz", "one.npy", "none.npz"):
        refused(f"{name}: no arrays that can be read", folder, tmp_path / name)
    refused("encode.onnx can't be run", folder, files["small.npz"])
    refused("end it in .png", folder, out="c.foo")
    refused("a folder that is not there", folder, out="none/c.png")
    refused("must be a number", folder, files["good.npz"], "c.png", "--guidance", "nan")
    with pytest.raises(ValueError, match="not finite"):
        device.to_picture(np.full((1, 3, 4, 4), np.nan), device.Box(0, 0, 4, 4))


def test_wrong_calls_say_what_would_work(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = str(picture(tmp_path / "a.png", (40, 60), 0))
    for call, words in (
        ([photo, photo, "--model", str(tmp_path)], "omfa.export --runtime onnx"),
        ([photo, str(tmp_path / "none.png"), "--model", str(folder)], "no picture that can be read"),
        ([photo, photo, "--model", str(folder), "--steps", "0"], "give 1 to 1000"),
        ([photo, photo, "--model", str(folder)], "goes by the body in the photo: give --drawn"),
    ):
        assert device.main(call) == 2
        assert words in capsys.readouterr().err
    for call, words in (
        (["--model", "compact", "--out", str(tmp_path / "x")], "add --runtime onnx"),
        (
            ["--model", "compact", "--runtime", "onnx", "--size", "100x100", "--out", str(tmp_path / "x")],
            "multiples of 32",
        ),
        (
            ["--model", "compact", "--runtime", "onnx", "--dtype", "bfloat16", "--out", str(tmp_path / "x")],
            "a graph stores",
        ),
    ):
        assert export(call) == 2
        assert words in capsys.readouterr().err
