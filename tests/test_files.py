"""What the commands share: one line for a wrong call, and nothing half-written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from omfa import encode, evaluate, export, predict, yardsticks
from omfa.commands import find_device
from omfa.files import Unwritable, aside, check_writable, whole, write_json
from tests.conftest import full_disk

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], list[str]]] = {
    "encode": (encode.main, ["--size", "x"]),
    "export": (export.main, ["--dtype", "float8"]),
    "predict": (predict.main, ["--batch", "0"]),
    "evaluate": (evaluate.main, ["run", "--limit", "-1"]),
    "yardsticks": (yardsticks.main, ["--limit", "0"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_wrong_call_is_said_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main, words = COMMANDS[name]
    with pytest.raises(SystemExit) as stop:
        main(words)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1 and words[-2] in said and f"omfa.{name}" in said


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(KeyError), whole(path) as part:
        part.write_text("half")
        raise KeyError
    with full_disk(4096), pytest.raises(Unwritable, match=rf"{path.parent} can't.*free some space"):
        write_json(path, "a" * 5000)
    assert path.read_text() == '{"a": 1}\n' and list(path.parent.iterdir()) == [path]


def test_a_folder_survives_a_kill_between_the_swaps_and_an_error_after_it(tmp_path: Path) -> None:
    folder, moved = tmp_path / "model", tmp_path / ".model.replaced"
    moved.mkdir()
    (moved / "a").write_text("1")
    with pytest.raises(KeyError), aside(folder) as part:
        part.mkdir()
        raise KeyError
    assert (folder / "a").read_text() == "1" and list(tmp_path.iterdir()) == [folder]
    with aside(folder) as part:
        part.mkdir()
        (part / "b").write_text("2")
    assert [p.name for p in folder.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_cannot_be_made_is_named_with_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"file/out can't be written to .*: give another --there"):
        check_writable(tmp_path / "file" / "out", "--there")
    check_writable(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_devices_that_are_not_there_are_refused() -> None:
    assert find_device("cpu") == "cpu" and find_device("auto") in ("cpu", "cuda")
    for name in ("foo", "cuda:99", "cpu:x", "cpu:1", ""):
        with pytest.raises(ValueError, match=r"there is none here; give one of .*cpu"):
            find_device(name)
