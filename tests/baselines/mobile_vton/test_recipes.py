"""The recipes parse and train with tiny networks swapped in, stop, go on, and leave a model that dresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from omfa.baselines.mobile_vton.encode import encode_records
from omfa.baselines.mobile_vton.encode import main as encode
from omfa.baselines.mobile_vton.folder import GARMENT, TRYON
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.pipeline import MobileVTON
from omfa.baselines.mobile_vton.start import main as start
from omfa.fit import main as fit
from omfa.training.checkpoints import last_checkpoint
from tests.baselines.mobile_vton import golden, tiny
from tests.baselines.mobile_vton.two_records import make_teacher
from tests.ranks import run, saved

CONFIGS = Path(__file__).parents[3] / "lightning_configs"


@pytest.fixture(scope="module")
def made(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, a teacher, and records encoded by the model."""
    root = tmp_path_factory.mktemp("made")
    pipe = MobileVTON(tiny.parts(root))
    pipe.quiet = True
    pipe.save_pretrained(root / "weights")
    encode_records(pipe, records, root / "encoded", tiny.SIZE)
    make_teacher().save_pretrained(root / "teacher")
    return root


def call(
    made: Path, records: Path, stage: list[str], networks: Path, out: Path, steps: int, **trainer: Any
) -> list[str]:
    """Arguments for a recipe with tiny networks swapped in; ``trainer``: settings of it, ``batch``: of the data."""

    def read(name: str) -> dict[str, Any]:
        path = "omfa.baselines.mobile_vton.folder.read_light_unet"
        return {"class_path": path, "init_args": {"folder": str(networks / name)}}

    batch = trainer.pop("batch", 2)
    here = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true", **trainer}
    teacher = {"folder": str(made / "teacher"), "subfolder": None}
    data = {"folder": str(records), "encoded": str(made / "encoded"), "split": None, "batch_size": batch, "workers": 0}
    own = {
        "trainer": {**here, "max_steps": steps, "default_root_dir": str(out)},
        "model": {
            "init_args": {
                "tryon": read(TRYON),
                "garment": read(GARMENT),
                "fake_updates": 1,
                "parts": str(made / "weights"),
                "teacher": {"init_args": teacher},
            }
        },
        "data": {"init_args": data},
    }
    layer = out.parent / f"{out.name}.yaml"
    layer.write_text(yaml.safe_dump(own))
    files = [*(CONFIGS / f"{name}.yaml" for name in ["mobile_vton", *stage]), layer]
    return [arg for file in files for arg in ("--config", str(file))]


def test_both_stages(made: Path, records: Path, tmp_path: Path) -> None:
    first = call(made, records, [], made / "weights", tmp_path / "run", 2)
    assert fit(first) in (0, None)
    checkpoint = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert checkpoint is not None and checkpoint.name == "step=2.ckpt"
    first = call(made, records, [], made / "weights", tmp_path / "run", 3)
    assert fit([*first, "--ckpt_path", "last"]) in (0, None)
    second = call(made, records, ["mobile_vton_stage2"], tmp_path / "run" / "model", tmp_path / "second", 1)
    assert fit(second) in (0, None)
    pipe = MobileVTON.from_pretrained(tmp_path / "second" / "model")
    pipe.quiet = True
    photo = Image.new("RGB", (32, 64), "tan")
    assert pipe(photo, photo, "upper", num_inference_steps=1).persons[0].size == (32, 64)


@pytest.mark.slow
def test_two_processes_train_as_one(made: Path, records: Path, tmp_path: Path) -> None:
    """All networks: the student's three losses, the fake-score network, the discriminator."""
    for name, processes in (("one", 1), ("two", 2)):
        how = {"strategy": "ddp_find_unused_parameters_true"} if processes > 1 else {}
        arguments = call(made, records, [], made / "weights", tmp_path / name, 3, batch=2 // processes, **how)
        ended = run(arguments, processes)
        assert not any(ended.codes), ended.log
    one, two = saved(tmp_path / "one"), saved(tmp_path / "two")
    assert one.keys() == two.keys() and {k.split(".")[1] for k in one if "." in k} > {"tryon", "garment", "fake"}
    for name, value in one.items():
        if name.startswith("weight"):
            torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_compact_recipe_with_its_teacher(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From nothing: parts, latents, a teacher, a student, a picture; the commands that the lab notes give."""
    monkeypatch.chdir(tmp_path)
    parts, encoded = Path("runs/mobile_vton_compact/parts"), "encoded"
    vae = str(CONFIGS.parent / "omfa" / "models" / "compact" / "vae")
    assert start(["--records", str(records), "--out", str(parts), "--vae", vae, "--size", "64x32"]) == 0
    asked = ["--records", str(records), "--model", str(parts), "--out", encoded, "--size", "64x32", "--device", "cpu"]
    assert encode(asked) == 0
    folders = {"folder": str(records), "encoded": encoded, "split": "null", "batch_size": "2"}
    shared = [f"--data.init_args.{k}={v}" for k, v in folders.items()]
    shared += ["--trainer.accelerator=cpu", "--trainer.max_steps=1"]
    teacher, student = (str(CONFIGS / f"mobile_vton_compact{n}.yaml") for n in ("_teacher", ""))
    assert fit(["--config", teacher, *shared]) in (0, None)
    assert fit(["--config", student, *shared]) in (0, None)
    pipe = MobileVTON.from_pretrained("runs/mobile_vton_compact/full/model")
    pipe.quiet = True
    photo = Image.new("RGB", (32, 64), "tan")
    assert pipe(photo, photo, "dress", num_inference_steps=1).persons[0].size == (32, 64)


def test_the_recipe_builds_the_sizes_that_are_counted() -> None:
    networks = yaml.safe_load((CONFIGS / "mobile_vton.yaml").read_text())["model"]["init_args"]
    counts = []
    for name in ("tryon", "garment"):
        with torch.device("meta"):
            network = LightUNet(**networks[name]["init_args"])
        about = golden.keys("mobile_keys_garmentnet_candidate")["keys"]
        counts.append(sum(p.numel() for p in network.parameters()))
        assert set(about) <= set(network.state_dict())
    assert counts == [451_903_424, 413_516_832]
