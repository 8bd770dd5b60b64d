from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from omfa.baselines.ladi_vton import training

CONFIGS = Path(__file__).parents[3] / "lightning_configs"
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
