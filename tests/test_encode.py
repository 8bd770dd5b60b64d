"""Latents ahead of training: the same losses as from pictures, and a folder that can be trusted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from omfa import encode
from omfa.pipeline import OMFAPipeline
from omfa.records.latents import encoded_file
from omfa.records.prepared import RecordError
from omfa.training.examples import ExampleOptions, Geometry, RecordsDataset, collate
from omfa.training.module import OMFAModule
from tests.conftest import SIZE, full_disk, make_compact

SIZE_TEXT = f"{SIZE[0]}x{SIZE[1]}"


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    make_compact().vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents(records: Path, vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents") / "here"
    assert encode.main(call(records, vae, out)) == 0
    return out


def call(records: Path, vae: Path, out: Path, size: str = SIZE_TEXT) -> list[str]:
    return ["--records", str(records), "--vae", str(vae), "--out", str(out), "--size", size, "--batch", "3"]


def dataset(records: Path, pipe: OMFAPipeline, **options: object) -> RecordsDataset:
    return RecordsDataset(records, Geometry(pipe.canvas, 4, 4), ExampleOptions(**options))  # type: ignore[arg-type]


def test_latents_give_the_losses_of_pictures(records: Path, latents: Path) -> None:
    pipe = make_compact()
    module = OMFAModule(pipe)
    keys = [(epoch, i) for epoch in range(2) for i in range(8)]
    from_pictures = collate([dataset(records, pipe)[k] for k in keys])
    from_latents = collate([dataset(records, pipe, latents=latents)[k] for k in keys])
    assert from_latents.encoded and not from_pictures.encoded and from_latents.layout == from_pictures.layout
    with torch.no_grad():
        a, b = module.losses(from_pictures), module.losses(from_latents)
    assert torch.allclose(a, b, rtol=2e-3), (a - b).abs().max()


def test_what_is_there_is_not_encoded_again(records: Path, vae: Path, latents: Path, tmp_path: Path) -> None:
    out = tmp_path / "half"
    shutil.copytree(latents, out)
    files = sorted(out.rglob("*.safetensors"))
    files[0].unlink()
    before = {f: f.stat().st_mtime_ns for f in files[1:]}
    assert encode.main(call(records, vae, out)) == 0
    assert files[0].is_file() and {f: f.stat().st_mtime_ns for f in files[1:]} == before
    again, first = load_file(files[0]), load_file(latents / files[0].relative_to(out))
    assert again.keys() == first.keys()  # another batch: the same numbers but for their last bits
    assert all(torch.allclose(again[k].float(), first[k].float(), rtol=2e-3, atol=2e-3) for k in first)


def test_latents_of_something_else_are_refused(
    records: Path, vae: Path, latents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = make_compact()
    assert encode.main(call(records, vae, latents, "32x32")) == 2 and "another --out" in capsys.readouterr().err
    assert encode.main(call(records, tmp_path, latents)) == 2 and "holds no VAE" in capsys.readouterr().err
    assert encode.main(call(records, vae, latents, "63x48")) == 2 and "multiples of 4" in capsys.readouterr().err
    with pytest.raises(RecordError, match="no latents"):
        dataset(records, pipe, latents=tmp_path)
    with pytest.raises(RecordError, match="jitter"):
        dataset(records, pipe, latents=latents, jitter=0.1)
    other = tmp_path / "other"
    shutil.copytree(latents, other)
    record = dataset(records, pipe).records[0]
    encoded_file(other, record.id).unlink()
    with pytest.raises(RecordError, match=f"lacks latents of 1 of .*{record.id}"):
        dataset(records, pipe, latents=other)


def test_a_broken_picture_is_named_and_the_rest_encoded(
    records: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, out = tmp_path / "records", tmp_path / "out"
    shutil.copytree(records, broken)
    record = dataset(records, make_compact()).records[2]
    (broken / record.file_name).write_bytes(b"no picture")
    assert encode.main(call(broken, vae, out)) == 1
    assert f"{record.id}: {broken / record.file_name}: missing or damaged" in capsys.readouterr().err
    assert len(list(out.rglob("*.safetensors"))) == 7 and not list(out.rglob("*.part"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--device", "foo"], "--device foo: there is none here"),
        (["--split", "nosuch"], "holds no records of split 'nosuch'"),
        (["--vae", "nosuch"], "--vae 'nosuch' holds no VAE"),
        (["--out", "{file}/out"], "can't be written to"),
    ],
)
def test_wrong_calls_are_one_line_and_write_nothing(
    records: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    (tmp_path / "file").write_text("")
    more = [word.format(file=tmp_path / "file") for word in more]
    assert encode.main([*call(records, vae, tmp_path / "out"), *more]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_the_same_call_goes_on(
    records: Path, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with full_disk(5000):
        assert encode.main(call(records, vae, out)) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert str(out) in said[-1] and "free some space" in said[-1]
    assert [p.name for p in out.rglob("*") if p.is_file()] == ["encoding.json"]
    assert encode.main(call(records, vae, out)) == 0 and len(list(out.rglob("*.safetensors"))) == 8


def stamps(folder: Path) -> dict[Path, int]:
    return {f.relative_to(folder): f.stat().st_mtime_ns for f in folder.rglob("*.safetensors")}


def test_changed_records_are_encoded_again_and_no_others(
    records: Path, vae: Path, latents: Path, tmp_path: Path
) -> None:
    copy, out = tmp_path / "records", tmp_path / "out"
    shutil.copytree(records, copy)
    shutil.copytree(latents, out)
    before = stamps(out)
    assert encode.main(call(copy, vae, out)) == 0 and stamps(out) == before  # other files, the same pictures
    first, second = dataset(records, make_compact()).records[:2]
    shutil.copy(copy / second.file_name, copy / first.file_name)
    assert encode.main(call(copy, vae, out)) == 0
    assert {f for f, t in stamps(out).items() if t != before[f]} == {encoded_file(Path(), first.id)}
    one, other = (load_file(encoded_file(out, r.id))["person"].float() for r in (first, second))
    assert torch.allclose(one, other, rtol=2e-3, atol=2e-3)


def test_latents_that_lack_a_picture_are_refused_by_name_and_completed(
    records: Path, vae: Path, tmp_path: Path
) -> None:
    """Records that got faces and poses after they were encoded."""
    copy, out, pipe = tmp_path / "records", tmp_path / "out", make_compact()
    shutil.copytree(records, copy)
    metadata, full = copy / "metadata.jsonl", (copy / "metadata.jsonl").read_text()
    bare = [{**json.loads(line), "pose": None, "face": None} for line in full.splitlines()]
    metadata.write_text("".join(json.dumps(line) + "\n" for line in bare))
    assert encode.main(call(copy, vae, out)) == 0
    dataset(copy, pipe, latents=out)
    metadata.write_text(full)
    with pytest.raises(RecordError, match=r"lacks latents of 8 of 8 records.*\(face, pose_map\).*omfa.encode again"):
        dataset(copy, pipe, latents=out)
    assert encode.main(call(copy, vae, out)) == 0
    assert dataset(copy, pipe, latents=out)[0, 0].encoded


def test_latents_without_a_hash_train_and_are_made_again(
    records: Path, vae: Path, latents: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(latents, out)
    for path in out.rglob("*.safetensors"):
        save_file(load_file(path), path)
    before = stamps(out)
    assert dataset(records, make_compact(), latents=out)[0, 0].encoded
    assert encode.main(call(records, vae, out)) == 0
    assert all(t != before[f] for f, t in stamps(out).items())
