"""The nodes for ComfyUI: schemas of the recorded shape, and workflows that give the command line's own pictures."""

from __future__ import annotations

import asyncio
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omfa.app.comfyui import comfy_entrypoint, functions, workflows
from tests.app import comfy_shape
from tests.conftest import make_compact
from tests.test_main import run

EXAMPLES = Path(workflows.__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's folder of models, with one of ours."""
    folder = tmp_path_factory.mktemp("models")
    make_compact().save_pretrained(folder / "tiny")
    return folder


@pytest.fixture
def comfy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-ins, what they saw, and the pack's nodes by id."""
    before = dict(sys.modules)
    bar, paths = comfy_shape.install()
    pack = asyncio.run(comfy_entrypoint())
    paths["omfa"].append(str(folder))  # type: ignore[index]
    nodes = {node.define_schema().node_id: node for node in asyncio.run(pack.get_node_list())}
    yield bar, nodes
    for name in set(sys.modules) - set(before):
        if name.startswith(("comfy", "folder_paths", "omfa.app.comfyui.nodes")):
            del sys.modules[name]


def test_every_schema_keeps_the_rules(comfy: Any) -> None:
    _, nodes = comfy
    assert len(nodes) == 8
    for name, node in nodes.items():
        schema = comfy_shape.check_node(node)
        assert name.startswith("OMFA") and schema.category == "OMFA" and schema.description
    (choice,) = nodes["OMFALoadModel"].define_schema().inputs
    assert choice.options["options"] == ["compact", "tiny"]


def test_the_shipped_workflows_are_those_of_the_code_and_fit_the_schemas(comfy: Any) -> None:
    _, nodes = comfy
    for name, graph in workflows.WORKFLOWS.items():
        assert json.loads((workflows.FOLDER / "api" / f"{name}.json").read_text()) == graph
        canvas = json.loads((workflows.FOLDER / f"{name}.json").read_text())
        assert canvas == json.loads(json.dumps(workflows.laid_out(graph)))
        assert (workflows.FOLDER / f"{name}.jpg").is_file()
        kinds = {n["id"]: n for n in canvas["nodes"]}
        for _, source, out, target, slot, kind in canvas["links"]:
            assert kinds[source]["outputs"][out]["type"] == kinds[target]["inputs"][slot]["type"] == kind
        for node in canvas["nodes"]:
            if node["type"] in nodes:  # a canvas gives values by their place, so they must stand as the schema has them
                schema = nodes[node["type"]].define_schema()
                wired = {i["name"] for i in node["inputs"]}
                widgets = [p for p in schema.inputs if p.kind in ("INT", "FLOAT", "COMBO") and p.id not in wired]
                assert len(node["widgets_values"]) == len(widgets) + any(p.id == "seed" for p in widgets)
                assert [n for n in graph[str(node["id"])]["inputs"] if n not in wired] == [p.id for p in widgets]


def test_a_workflow_gives_the_pictures_of_the_command_line(comfy: Any, folder: Path, tmp_path: Path) -> None:
    bar, nodes = comfy
    graph = json.loads(json.dumps(workflows.WORKFLOWS["take_off_and_try_on"]).replace('"compact"', '"tiny"'))
    for i in ("4", "5"):
        graph[i]["inputs"] |= {"steps": 2, "seed": 5}
    graph["9"] = {"class_type": "OMFANamedPose", "inputs": {"name": "waving", "width": 48, "height": 64, "yaw": 0.0}}
    graph["5"]["inputs"] |= {"pose": ["9", 0], "face": ["3", 0], "keep": "nothing"}
    made = comfy_shape.execute(graph, nodes, EXAMPLES)
    assert bar.seen and set(bar.seen) == {(1, 2), (2, 2)} and len(bar.loaded) == 2
    off, on = (Image.fromarray((made[i][0][0].numpy() * 255).round().astype(np.uint8)) for i in ("6", "7"))

    common = ["--model", folder / "tiny", "--steps", 2, "--seed", 5, "-o", tmp_path]
    assert run("try-off", EXAMPLES / "woman.jpg", *common) == 0
    from omfa.orders import named_pose

    named_pose("waving", (64, 48)).save(tmp_path / "waving.npz")
    looks = ["--face", EXAMPLES / "man.jpg", "--pose", tmp_path / "waving.npz", "--keep", "nothing"]
    worn = ["--garment", f"upper={tmp_path / 'woman_upper.png'}", "--portrait", EXAMPLES / "man.jpg"]
    assert run("try-on", *worn, *looks, *common) == 0
    assert off.tobytes() == Image.open(tmp_path / "woman_upper.png").tobytes()
    assert on.tobytes() == Image.open(tmp_path / "man_try_on.png").tobytes()


def test_batches_go_picture_by_picture(folder: Path) -> None:
    pipe = functions.load_model("tiny", [folder])
    two = torch.rand(2, 64, 48, 3, generator=torch.Generator().manual_seed(0))
    both = functions.make(pipe, "try-off", two, steps=1, seed=3)
    assert both.shape == (2, *both.shape[1:]) and both.dtype == torch.float32
    assert torch.equal(functions.make(pipe, "try-off", two[1:], steps=1, seed=3), both[1:])
    pose = functions.pose_by_name("walking", 48, 64, 90.0)
    views = functions.make(pipe, "turntable", two[:1], face=two[1:], pose=pose, steps=1, views=3, keep="nothing",
                           garments={"upper": two[:1]})  # fmt: skip
    assert views.shape[0] == 3
    drawn = functions.pose_map(pose, "parts_blend")
    assert drawn.shape == (1, 64, 48, 3) and 0 <= float(drawn.min()) < float(drawn.max()) <= 1
    with pytest.raises(ValueError, match="give 1 or 3"):
        functions.make(pipe, "try-on", two, garments={"upper": torch.rand(3, 64, 48, 3)}, pose=pose, face=two)
    with pytest.raises(ValueError, match="must be"):
        functions.make(pipe, "try-off", torch.rand(64, 48, 3))


def test_stop_ends_a_node_at_the_next_step(comfy: Any) -> None:
    bar, nodes = comfy
    model = nodes["OMFALoadModel"].execute("tiny").args[0]
    bar.stop_at = 3
    with pytest.raises(comfy_shape.Interrupted):
        nodes["OMFATakeOff"].execute(model, torch.rand(1, 64, 48, 3), "upper", seed=0, steps=50, guidance=1.0)
    assert len(bar.seen) == 3


def test_a_model_that_is_not_there_is_not_fetched(folder: Path) -> None:
    with pytest.raises(ValueError, match="owner/model"):
        functions.load_model("owner/model", [folder])
    shutil.copytree(folder / "tiny", folder / "broken")
    (folder / "broken" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    try:
        with pytest.raises(ValueError, match="export or fetch it again"):
            functions.load_model("broken", [folder])
    finally:
        shutil.rmtree(folder / "broken")


def test_the_pack_imports_without_comfyui() -> None:
    assert importlib.import_module("omfa.app.comfyui").comfy_entrypoint
    assert "omfa.app.comfyui.nodes" not in sys.modules
