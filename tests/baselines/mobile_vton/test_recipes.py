"""The recipes parse and train with tiny networks swapped in, stop, go on, and leave a model that dresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from omfa.baselines.mobile_vton.encode import encode_records
from omfa.baselines.mobile_vton.folder import GARMENT, TRYON
from omfa.baselines.mobile_vton.light_unet import LightUNet
from omfa.baselines.mobile_vton.pipeline import MobileVTON
from omfa.fit import main as fit
from omfa.training.checkpoints import last_checkpoint
from tests.baselines.mobile_vton import golden, tiny
from tests.baselines.mobile_vton.two_records import make_teacher

CONFIGS = Path(__file__).parents[3] / "lightning_configs"


def test_both_stages(records: Path, tmp_path: Path) -> None:
    model, encoded, run = tmp_path / "weights", tmp_path / "encoded", tmp_path / "run"
    pipe = MobileVTON(tiny.parts(tmp_path))
    pipe.quiet = True
    pipe.save_pretrained(model)
    encode_records(pipe, records, encoded, tiny.SIZE)
    make_teacher().save_pretrained(tmp_path / "teacher")

    def call(stage: list[str], networks: Path, out: Path, steps: int) -> list[str]:
        def read(name: str) -> dict[str, Any]:
            path = "omfa.baselines.mobile_vton.folder.read_light_unet"
            return {"class_path": path, "init_args": {"folder": str(networks / name)}}

        here = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"}
        teacher = {"folder": str(tmp_path / "teacher"), "subfolder": None}
        own = {
            "trainer": {**here, "max_steps": steps, "default_root_dir": str(out)},
            "model": {
                "init_args": {
                    "tryon": read(TRYON),
                    "garment": read(GARMENT),
                    "fake_updates": 1,
                    "parts": str(model),
                    "teacher": {"init_args": teacher},
                }
            },
            "data": {
                "init_args": {
                    "folder": str(records), "encoded": str(encoded), "split": None, "batch_size": 2, "workers": 0
                }
            },
        }  # fmt: skip
        layer = tmp_path / "layer.yaml"
        layer.write_text(yaml.safe_dump(own))
        files = [*(CONFIGS / f"{name}.yaml" for name in ["mobile_vton", *stage]), layer]
        return [arg for file in files for arg in ("--config", str(file))]

    assert fit(call([], model, run, 2)) in (0, None)
    first = last_checkpoint(run / "checkpoints")
    assert first is not None and first.name == "step=2.ckpt"
    assert fit([*call([], model, run, 3), "--ckpt_path", "last"]) in (0, None)
    assert fit(call(["mobile_vton_stage2"], run / "model", tmp_path / "second", 1)) in (0, None)
    made = MobileVTON.from_pretrained(tmp_path / "second" / "model")
    made.quiet = True
    photo = Image.new("RGB", (32, 64), "tan")
    assert made(photo, photo, "upper", num_inference_steps=1).persons[0].size == (32, 64)


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
