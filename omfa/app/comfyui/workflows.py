"""The example workflows: what they are in ComfyUI's API format, and the same laid out for its canvas.

python -m omfa.app.comfyui.workflows    # writes example_workflows anew
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omfa.files import write_json

FOLDER = Path(__file__).parent / "example_workflows"
WIDE, TALL = 340, 420  # of a node's place on the canvas
_SAMPLER = {"seed": 0, "steps": 0, "guidance": 0.0}
_MODEL = {"class_type": "OMFALoadModel", "inputs": {"name": "compact"}}

Graph = dict[str, dict[str, Any]]


def _photo(name: str) -> dict[str, Any]:
    return {"class_type": "LoadImage", "inputs": {"image": name}}


def _saved(link: list[Any], prefix: str) -> dict[str, Any]:
    return {"class_type": "SaveImage", "inputs": {"images": link, "filename_prefix": prefix}}


WORKFLOWS: dict[str, Graph] = {
    "take_off_and_try_on": {
        "1": _MODEL,
        "2": _photo("woman.jpg"),
        "3": _photo("man.jpg"),
        "4": {
            "class_type": "OMFATakeOff",
            "inputs": {"model": ["1", 0], "photo": ["2", 0], "garment": "upper", **_SAMPLER},
        },
        "5": {
            "class_type": "OMFATryOn",
            "inputs": {"model": ["1", 0], "photo": ["3", 0], "upper": ["4", 0], "keep": "auto", **_SAMPLER},
        },
        "6": _saved(["4", 0], "omfa_off"),
        "7": _saved(["5", 0], "omfa_on"),
    },
    "another_pose": {
        "1": _MODEL,
        "2": _photo("man.jpg"),
        "3": {"class_type": "OMFANamedPose", "inputs": {"name": "walking", "width": 192, "height": 256, "yaw": 0.0}},
        "4": {"class_type": "OMFAPoseMap", "inputs": {"pose": ["3", 0], "style": "parts_blend"}},
        "5": _photo("plaid_shirt.jpg"),
        "6": {
            "class_type": "OMFATryOn",
            "inputs": {
                **{"model": ["1", 0], "photo": ["2", 0], "upper": ["5", 0], "pose": ["3", 0], "keep": "others"},
                **_SAMPLER,
            },
        },
        "7": _saved(["6", 0], "omfa_walking"),
        "8": _saved(["4", 0], "omfa_pose"),
    },
    "turntable": {
        "1": _MODEL,
        "2": _photo("woman.jpg"),
        "3": {"class_type": "OMFATurntable", "inputs": {"model": ["1", 0], "photo": ["2", 0], "views": 6, **_SAMPLER}},
        "4": _saved(["3", 0], "omfa_turn"),
    },
}
_OUTPUTS = {
    "OMFALoadModel": ("model", "OMFA_MODEL"), "OMFANamedPose": ("pose", "OMFA_POSE"), "LoadImage": ("IMAGE", "IMAGE"),
}  # fmt: skip


def laid_out(graph: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A graph of the API format as one for the canvas: nodes in columns from left to right, links, widgets' values."""
    links: list[list[Any]] = []
    nodes: dict[str, dict[str, Any]] = {}
    rows: dict[int, int] = {}
    depth: dict[str, int] = {}
    for i, node in graph.items():  # in an order in which what is needed comes first
        wired = {name: v for name, v in node["inputs"].items() if isinstance(v, list)}
        depth[i] = max((depth[v[0]] + 1 for v in wired.values()), default=0)
        row = rows[depth[i]] = rows.get(depth[i], -1) + 1
        slots = []
        for slot, (name, (source, number)) in enumerate(wired.items()):
            kind = nodes[source]["outputs"][number]["type"]
            links.append([len(links) + 1, int(source), number, int(i), slot, kind])
            nodes[source]["outputs"][number]["links"].append(len(links))
            slots.append({"name": name, "type": kind, "link": len(links)})
        values: list[Any] = []
        for name, value in node["inputs"].items():
            if name not in wired:
                values += [value, "fixed"] if name == "seed" else [value]  # what becomes of it after a run
        if node["class_type"] == "LoadImage":
            values.append("image")
        name, kind = _OUTPUTS.get(node["class_type"], ("images" if "Turn" in node["class_type"] else "image", "IMAGE"))
        outputs = [] if node["class_type"] == "SaveImage" else [{"name": name, "type": kind, "links": []}]
        if node["class_type"] == "LoadImage":
            outputs.append({"name": "MASK", "type": "MASK", "links": []})
        nodes[i] = {
            "id": int(i), "type": node["class_type"], "pos": [depth[i] * WIDE, row * TALL], "size": [WIDE - 40, 200],
            "flags": {}, "order": len(nodes), "mode": 0, "inputs": slots, "outputs": outputs,
            "properties": {"Node name for S&R": node["class_type"]}, "widgets_values": values,
        }  # fmt: skip
    return {
        "last_node_id": max(map(int, graph)), "last_link_id": len(links), "nodes": list(nodes.values()),
        "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }  # fmt: skip


def main() -> None:
    """Write both formats of each."""
    for name, graph in WORKFLOWS.items():
        write_json(FOLDER / f"{name}.json", laid_out(graph), indent=1)
        (FOLDER / "api").mkdir(exist_ok=True)
        (FOLDER / "api" / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
