from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from omfa.baselines.ladi_vton import training
from omfa.fit import main as fit

CONFIGS = Path(__file__).parents[3] / "lightning_configs"
PUBLISHED = {  # learning rate, steps, batch, size, precision, clipping: arXiv 2305.13501 and its program
    "1_tps": (1e-4, 36400, 16, [256, 192], None, None),
    "2_refine": (1e-4, 36400, 16, [512, 384], None, None),
    "3_emasc": (1e-5, 40000, 16, [512, 384], "16-mixed", 1.0),
    "4_inversion": (1e-5, 200000, 16, [512, 384], "16-mixed", 1.0),
    "5_repaint": (1e-5, 200000, 16, [512, 384], "16-mixed", 1.0),
}
STAGES = ("1_tps", "2_refine", "3_emasc", "4_inversion", "5_repaint")


@pytest.mark.parametrize("kind", ["ladi", "ladi_compact"])
def test_every_stage_takes_the_last_ones_folder(kind: str) -> None:
    before = None
    for stage in STAGES:
        recipe = yaml.safe_load((CONFIGS / f"{kind}_{stage}.yaml").read_text())
        module, data = recipe["model"], recipe["data"]
        assert hasattr(training, module["class_path"].rpartition(".")[2])
        assert data["class_path"].endswith("LaDIVTONData")
        if before is not None:
            assert module["init_args"]["pipeline"]["init_args"]["folder"] == f"{before}/model"
        before = recipe["trainer"]["default_root_dir"]
        assert before == f"runs/{kind}_{stage}"


@pytest.mark.parametrize("stage", STAGES)
def test_the_full_recipes_parse_with_the_published_settings(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        fit(["--config", str(CONFIGS / f"ladi_{stage}.yaml"), "--print_config"])
    printed = capsys.readouterr().out
    shown = yaml.safe_load(printed[printed.index("seed_everything:") :])
    trainer, model, data = shown["trainer"], shown["model"]["init_args"], shown["data"]["init_args"]
    found = (model["learning_rate"], trainer["max_steps"], data["batch_size"], data["size"], trainer["precision"])
    assert stop.value.code == 0 and (*found, trainer["gradient_clip_val"]) == PUBLISHED[stage]
    assert model.get("warmup_steps", 500) == 500 and model.get("drop", 0.2) == 0.2
    assert model.get("perceptual") == {"2_refine": 0.25, "3_emasc": 0.5}.get(stage)
