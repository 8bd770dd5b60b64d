"""House rules: import floors, lint, types, docstrings, and nothing that names a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    0: {"components", "canvas", "images", "prepared", "shards", "doors"},
    1: {
        *{"body", "pose_render", "partial_diffusion", "backbone", "conditioning", "prompts", "tuning", "dual_unet"},
        *{"metrics", "intervals", "features", "protocols", "pattern_kind", "person_outline"},
    },
    2: {"pipeline", "sdxl", "data", "scoring", "results", "zero", "costs"},
    3: {"module", "callbacks", "guards", "report", "model_card"},
    4: {"fit", "encode", "predict", "evaluate", "bench", "__main__", "demo", "yardsticks", "export"},
}
WITHIN = {  # imports inside one floor, from the first to the second
    *{("images", "components"), ("canvas", "components"), ("prepared", "components"), ("shards", "prepared")},
    *{("pose_render", "body"), ("callbacks", "module"), ("data", "pipeline"), ("intervals", "metrics")},
    *{("sdxl", "pipeline"), ("prompts", "conditioning"), ("callbacks", "model_card"), ("model_card", "report")},
    *{("guards", "callbacks"), ("bench", "encode"), ("tuning", "backbone")},
    *{("yardsticks", "predict"), ("yardsticks", "evaluate"), ("export", "fit")},
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
SOURCES = sorted([*ROOT.glob("omfa/*.py"), *ROOT.glob("data_prep/*.py")])


def imports(path: Path) -> set[str]:
    """Full names of all modules a file imports, those inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def modules(path: Path, package: str) -> set[str]:
    """Modules of a package that a file imports, by their last name."""
    names = {n.split(".")[1] for n in imports(path) if n.startswith(package + ".")}
    return {n for n in names if (ROOT / package / f"{n}.py").exists()}


@pytest.mark.parametrize("path", sorted(ROOT.glob("omfa/*.py")), ids=lambda p: p.name)
def test_a_file_imports_only_from_lower_floors(path: Path) -> None:
    name = path.stem
    if name == "__init__":
        return
    assert name in FLOOR, f"{path.name} has no floor: add it to FLOORS"
    for other in modules(path, "omfa"):
        assert FLOOR[other] < FLOOR[name] or (name, other) in WITHIN, f"{name} imports {other}"
    assert name == "__main__" or not modules(path, "data_prep"), f"{name} imports data_prep"


@pytest.mark.parametrize("path", sorted(ROOT.glob("data_prep/*.py")), ids=lambda p: p.name)
def test_data_prep_imports_omfas_two_lowest_floors_only(path: Path) -> None:
    assert all(FLOOR[n] <= 1 for n in modules(path, "omfa"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_public_functions_have_types_and_docstrings(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} has no docstring"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for node in [n for holder in [tree, *classes] for n in holder.body]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            args = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
            assert all(a.annotation for a in args) and node.returns, f"{path.name}: {node.name} lacks types"


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_lint_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_cuda_by_name_no_pickle_no_paths_of_a_machine() -> None:
    bad = re.compile(
        r"\.cuda\(|\.to\([\"']cuda|weights_only=False|allow_pickle=True|pickle\.loads?\(|/(?:home|root|mnt|media)/"
    )
    for path in [*SOURCES, *ROOT.glob("lightning_configs/*.yaml"), ROOT / "README.md", ROOT / "Makefile"]:
        found = bad.findall(path.read_text())
        if path.name == "run.py":  # it sends its own tasks to its own Ray workers
            found = [f for f in found if not f.startswith("pickle")]
        assert not found, f"{path.name}: {found}"


def test_import_is_quiet_and_opens_no_socket() -> None:
    code = (
        "import socket\ndef refuse(*_): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\nimport omfa.pipeline, omfa.fit, data_prep.__main__"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_yaml_opens_as_a_lab_note() -> None:
    for path in ROOT.glob("lightning_configs/*.yaml"):
        head = path.read_text().splitlines()[:8]
        assert head[0].startswith("# Lab note:") and any("python -m omfa.fit" in x for x in head), path.name
        assert any("Expected" in x for x in head), path.name
