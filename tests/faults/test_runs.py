"""Runs and their checkpoints: what is damaged, forged, or was made from nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from omfa import encode
from omfa.backbone import fingerprint
from omfa.files import Unwritable
from omfa.records.latents import encoded_file
from omfa.records.prepared import read_records
from omfa.training.checkpoints import SafeCheckpointIO, checkpoint_to_resume, checksum_file, is_whole, load_weights
from omfa.training.module import OMFAModule
from omfa.tuning import Mismatch
from tests.conftest import full_disk, make_compact


def save(root: Path, step: int) -> Path:
    path = root / "checkpoints" / f"step={step}.ckpt"
    SafeCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": step}, path)
    return path


@pytest.mark.parametrize("how", ["cut", "flipped", "without a sum", "another's sum"])
def test_where_every_checkpoint_is_damaged_nothing_begins_anew(tmp_path: Path, how: str) -> None:
    paths = [save(tmp_path, step) for step in (5, 10)]
    assert checkpoint_to_resume(tmp_path, "last") == paths[1]
    for path in reversed(paths):
        assert checkpoint_to_resume(tmp_path, "last") == path
        if how == "cut":
            os.truncate(path, path.stat().st_size - 3)
        elif how == "flipped":
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
        elif how == "without a sum":
            checksum_file(path).unlink()
        else:
            checksum_file(path).write_text("0" * 64)
    with pytest.raises(ValueError, match=r"every checkpoint is damaged.*step=10\.ckpt"):
        checkpoint_to_resume(tmp_path, "last")
    with pytest.raises(ValueError, match="already holds a run"):
        checkpoint_to_resume(tmp_path, None)


def test_a_run_that_never_saved_begins(tmp_path: Path) -> None:
    assert checkpoint_to_resume(tmp_path, "last") is None and checkpoint_to_resume(tmp_path, None) is None


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch evil",)


def forged(path: Path, data: bytes) -> Path:
    import hashlib

    path.write_bytes(data)
    checksum_file(path).write_text(hashlib.sha256(data).hexdigest())
    return path


@pytest.mark.parametrize(
    "data", [pickle.dumps(Evil()), pickle.dumps({"a": 1}), b"", b"\x80", b"PK\x03\x04" + b"\0" * 99]
)
def test_what_is_no_checkpoint_is_refused_without_advice_to_trust_it(tmp_path: Path, data: bytes) -> None:
    path = forged(tmp_path / "step=1.ckpt", data)
    assert is_whole(path)
    with pytest.raises(Mismatch) as said:
        load_weights(torch.nn.Linear(1, 1), path)
    assert "weights_only" not in str(said.value) and "\n" not in str(said.value) and not Path("evil").exists()


def test_a_full_disk_leaves_no_part(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    big = {"state_dict": {"x": torch.zeros(100_000)}, "global_step": 2}
    with full_disk(50_000), pytest.raises(Unwritable, match=r"free some space|another --trainer"):
        SafeCheckpointIO().save_checkpoint(big, path.with_name("step=2.ckpt"))
    assert checkpoint_to_resume(tmp_path, "last") == path
    assert {p.name for p in path.parent.iterdir()} <= {"step=1.ckpt", "step=1.ckpt.sha256", "step=2.ckpt.sha256"}


def test_a_vae_made_from_nothing_is_in_the_checkpoint(tmp_path: Path) -> None:
    first, second = (OMFAModule(make_compact(seed)) for seed in (0, 1))
    assert fingerprint(first.pipe.vae) != fingerprint(second.pipe.vae)
    kept = {"state_dict": first.state_dict(), "global_step": 3}
    first.on_save_checkpoint(kept)
    SafeCheckpointIO().save_checkpoint(kept, tmp_path / "step=3.ckpt")
    assert load_weights(second, tmp_path / "step=3.ckpt") == 3
    assert fingerprint(first.pipe.vae) == fingerprint(second.pipe.vae)
    assert not any(p.requires_grad for p in second.pipe.vae.parameters())


def test_latents_are_the_same_bytes_at_every_batch(records: Path, tmp_path: Path) -> None:
    vae = make_compact().vae
    vae.save_pretrained(tmp_path / "vae")
    every = read_records(records)
    for batch in (1, 3, 8):
        call = ["--records", str(records), "--vae", str(tmp_path / "vae"), "--size", "64x48", "--batch", str(batch)]
        assert encode.main([*call, "--out", str(tmp_path / str(batch))]) == 0
    for record in every:
        one, *others = (encoded_file(tmp_path / str(b), record.id).read_bytes() for b in (1, 3, 8))
        assert all(one == other for other in others)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] = float("nan")
    vae.save_pretrained(tmp_path / "bad")
    call = ["--records", str(records), "--vae", str(tmp_path / "bad"), "--size", "64x48"]
    assert encode.main([*call, "--out", str(tmp_path / "none")]) in (1, 2)
    assert not list((tmp_path / "none").rglob("*.safetensors"))
