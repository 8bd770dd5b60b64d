"""House rules: import floors, lint, types, docstrings, and nothing that names a machine; each tried on a file that
breaks it."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MOST_LINES = 450  # of the tests' files too
# The house from the ground up. A file imports from floors below its own; inside one floor, from what stands left of it.
FLOORS = (
    *("files", "bodies"),
    *("components", "canvas", "commands", "colours", "images", "sheets", "hub", "records"),
    *("weights", "backbone", "partial_diffusion", "conditioning", "prompts", "tuning", "rows", "few_steps", "composer"),
    *(
        "evaluation",
        "sampling",
        "network",
        "request",
        "drafting",
        "tasks",
        "pipeline",
        "orders",
        "compact",
        "sdxl",
        "judged",
    ),
    *("batches", "graphs"),
    *("bench", "training", "baselines"),
)
DOORS = (
    "__main__",
    "fit",
    "encode",
    "export",
    "device",
    "predict",
    "evaluate",
    "yardsticks",
    "demo",
    "bench.__main__",
    "app",
    "from_nothing",
)
DATA_PREP_MAY = ("components", "canvas", "files", "commands", "images", "bodies", "records", "evaluation.judges")
BY_A_MODEL = {"portraits": ("pipeline", "evaluation.pairs")}  # what one stage may besides
HANDS_OVER_ESTIMATORS = ("__main__", "demo", "app")  # the only ones that reach data_prep
FORBIDDEN = re.compile(
    r"\.cuda\(|(?:\.to|\bdevice)\((?:device\s*=\s*)?[\"']cuda|/(?:home|root|mnt|media|tmp|work|Users)/"
    r"|weights_only\s*=\s*False|\btorch\.load\((?![^()]*weights_only\s*=\s*True)|allow_pickle\s*=\s*True"
    r"|\bpickle\.loads?\(|\b(?:import|from)\s+(?:pickle|dill|cloudpickle|marshal|shelve)\b(?! import UnpicklingError\n)"
)


def sources(root: Path = ROOT) -> list[Path]:
    """Every file of the two packages, however deep."""
    return sorted([*root.glob("omfa/**/*.py"), *root.glob("data_prep/**/*.py")])


def name_of(path: Path, root: Path = ROOT) -> str:
    """``omfa.bodies.body`` of ``omfa/bodies/body.py``; a package by its own name."""
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Full names of all that a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {"relative"} if node.level else {f"{node.module}.{a.name}" for a in node.names}
    return found


def own_imports(path: Path, root: Path = ROOT) -> set[str]:
    """Modules of the two packages that a file imports."""
    modules = {name_of(p, root) for p in sources(root)}
    found = set()
    for name in imports(path):
        parts = name.split(".")
        names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
        found |= {next((n for n in names if n in modules), "")}
    return found - {"", "omfa", "data_prep", name_of(path, root)}


def within(name: str, places: tuple[str, ...]) -> str | None:
    """Which of the places a module of omfa (named without it) stands in."""
    return next((p for p in sorted(places, key=len, reverse=True) if name == p or name.startswith(p + ".")), None)


def floor_problems(path: Path, root: Path = ROOT) -> Iterator[str]:
    """What a file imports against the floors."""
    package, _, name = name_of(path, root).partition(".")
    if "relative" in imports(path):
        yield "a relative import"
    for other in own_imports(path, root):
        theirs, _, module = other.partition(".")
        if package == "data_prep":
            if theirs == "omfa" and within(module, (*DATA_PREP_MAY, *BY_A_MODEL.get(name, ()))) is None:
                yield f"data_prep imports {other}"
        elif theirs == "data_prep":
            if within(name, HANDS_OVER_ESTIMATORS) is None:
                yield f"imports {other}"
        elif name:
            yield from _between_floors(name, module)


def _between_floors(name: str, other: str) -> Iterator[str]:
    door, other_door = within(name, DOORS), within(other, DOORS)
    wing, other_wing = within(name, FLOORS), within(other, FLOORS)
    if door is None and wing is None:
        yield "has no floor: add it to FLOORS"
    elif other_door is not None:
        if other_door != door:
            yield f"imports the door {other}"
    elif other_wing is None:
        yield f"imports {other}, which has no floor"
    elif door is None and wing is not None and FLOORS.index(other_wing) > FLOORS.index(wing):
        yield f"imports {other} from a floor above"
    elif wing == other_wing == "baselines" and name.split(".")[1] != other.split(".")[1]:
        yield f"one baseline imports another: {other}"


def words_problems(path: Path) -> Iterator[str]:
    """Missing docstrings and types, files that are too long, forbidden words."""
    text = path.read_text()
    tree = ast.parse(text)
    if text.count("\n") > MOST_LINES:
        yield f"{text.count(chr(10))} lines, at most {MOST_LINES}"
    if not ast.get_docstring(tree):
        yield "no docstring"
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
    for node in [n for holder in [tree, *classes] for n in holder.body]:
        named = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        if named and not ast.get_docstring(node):
            yield f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef):
            args = [a for a in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]
            if not node.returns or not all(a.annotation for a in args if a.arg not in ("self", "cls")):
                yield f"{node.name} lacks types"
    if found := FORBIDDEN.findall(text):
        yield f"forbidden: {found}"


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_a_file_keeps_the_rules(path: Path) -> None:
    assert [*floor_problems(path), *words_problems(path)] == []


def test_no_test_file_is_too_long() -> None:
    assert {p.name: n for p in ROOT.glob("tests/**/*.py") if (n := p.read_text().count("\n")) > MOST_LINES} == {}


def test_no_circles() -> None:
    graph = {name_of(p): own_imports(p) for p in sources()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail, name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


GOOD = '"""Words."""\n\n'
PLANTED = {
    "omfa/baselines/bad/pickles.py": (GOOD + "import pickle\n\nx = pickle.load(open('a', 'rb'))\n", "forbidden"),
    "omfa/baselines/bad/network.py": (
        GOOD + "def f(x: int) -> int:\n    '''F.'''\n    return x.to('cuda')\n",
        "forbidden",
    ),
    "omfa/training/loads.py": (GOOD + "from pickle import loads\n", "forbidden"),
    "omfa/training/old.py": (GOOD + "import torch\n\nx = torch.load(\n    'a', map_location='cpu'\n)\n", "forbidden"),
    "omfa/training/device.py": (GOOD + "import torch\n\nx = torch.zeros(1).to(device='cuda:0')\n", "forbidden"),
    "data_prep/poses/run.py": (GOOD + "import pickle\n\nx = pickle.loads(b'')\n", "forbidden"),
    "omfa/bodies/words.py": (GOOD + "from omfa.components import Category\n", "floor above"),
    "omfa/components.py": ("x = 1\n", "no docstring"),
    "omfa/bodies/deep/up.py": (GOOD + "from omfa.records import prepared\n", "floor above"),
    "omfa/training/door.py": (GOOD + "from omfa.fit import main\n", "the door"),
    "omfa/export.py": (GOOD + "from omfa import fit\n", "the door"),
    "omfa/baselines/one/a.py": (GOOD + "from omfa.baselines.two import b\n", "another"),
    "omfa/baselines/two/b.py": ("x = 1\n", "no docstring"),
    "omfa/lost.py": (GOOD + "from omfa.records import prepared\n", "no floor"),
    "omfa/evaluation/words.py": (GOOD + "def f(x) -> int:\n    return 1\n", "lacks types"),
    "omfa/evaluation/near.py": (GOOD + "from . import words\n", "relative"),
    "omfa/records/prepared.py": (GOOD + "import data_prep.run\n", "imports data_prep"),
    "omfa/fit.py": (GOOD + "#\n" * MOST_LINES, "at most"),
    "data_prep/run.py": (GOOD + "from omfa.pipeline import OMFAPipeline\n", "data_prep imports"),
    "omfa/pipeline.py": (GOOD + "torch.load(f, weights_only=False)\n", "forbidden"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_wrong_file_is_found(planted: str, tmp_path: Path) -> None:
    for name, (text, _) in PLANTED.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    path = tmp_path / planted
    assert path in sources(tmp_path)
    problems = [*floor_problems(path, tmp_path), *words_problems(path)]
    assert any(PLANTED[planted][1] in p for p in problems), problems


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_lint_and_types(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_names_a_machine() -> None:
    texts = [*ROOT.glob("lightning_configs/*.yaml"), *ROOT.glob("**/README.md"), ROOT / "Makefile", ROOT / "setup.cfg"]
    for path in texts:
        if ".venv" not in path.parts:
            assert not FORBIDDEN.findall(path.read_text()), path


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


def test_a_wheel_works_outside_the_checkout(tmp_path: Path) -> None:
    """Every package and every shipped file is in it: a try-off with the model that ships, from an empty folder.

    Built from a copy, so that no older build's files come along and none are left behind.
    """
    pip, source, site = [sys.executable, "-m", "pip"], tmp_path / "source", tmp_path / "site"
    for name in ("omfa", "data_prep"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, cwd=tmp_path, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "-q", "--no-deps", "--no-index", "--target", str(site), str(built)]
    subprocess.run(install, cwd=tmp_path, check=True, capture_output=True)
    inside = {p.relative_to(site).as_posix() for p in site.rglob("*.py")}
    assert {p.relative_to(ROOT).as_posix() for p in sources()} <= inside
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); import omfa; assert omfa.__file__.startswith({str(site)!r})\n"
        "import numpy as np; from PIL import Image; Image.fromarray(np.full((64, 48, 3), 90, np.uint8)).save('a.png')\n"
        "from omfa.__main__ import main; sys.exit(main(['try-off', 'a.png', '-o', 'off', '--steps', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "off" / "a_upper.png").is_file(), done.stderr
