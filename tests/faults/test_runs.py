"""Runs and their checkpoints: what is damaged, forged, or was made from nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import SIGTERMException

from omfa import encode, export
from omfa.backbone import fingerprint
from omfa.files import Unwritable
from omfa.fit import main as fit
from omfa.records.latents import encoded_file
from omfa.records.prepared import read_records
from omfa.training.checkpoints import SafeCheckpointIO, checkpoint_to_resume, checksum_file, is_whole, load_weights
from omfa.training.module import OMFAModule
from omfa.tuning import Mismatch
from tests.conftest import full_disk, make_compact
from tests.test_fit import ROOT, arguments


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


def test_a_sigterm_that_lightning_heard_first_is_no_error(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise SIGTERMException

    monkeypatch.setattr(pl.Trainer, "fit", asked)
    assert fit(arguments(records, tmp_path, 1)) == 0


def test_ctrl_c_saves_and_says_so(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--save_every=100", "--trainer.callbacks=EMA"]
    stop = ["--trainer.callbacks+=tests.killer.Killer", "--trainer.callbacks.at=3", "--trainer.callbacks.name=SIGINT"]
    assert fit(arguments(records, tmp_path, 6, *quick, *stop)) == 130
    last = checkpoint_to_resume(tmp_path, "last")
    assert last is not None and last.name == "step=3.ckpt"
    assert "stopped by hand: saved step 3" in capsys.readouterr().out
    assert not (tmp_path / ".lock").exists()
    assert fit(arguments(records, tmp_path, 6, *quick, "--ckpt_path=last")) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model.init_args.learning_rate=nan"], "learning_rate"),
        (["--data.init_args.batch_size=1000000000"], "batch_size"),
        (["--model.init_args.pipeline.init_args.unet.layers_per_block=10000000"], "layers_per_block"),
        (["--model.init_args.pipeline.init_args.person_size=[6400000000,48]"], "person_size"),
    ],
)
def test_absurd_numbers_are_refused_at_the_door(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    try:
        code = fit(arguments(records, tmp_path, 2, *more))
    except SystemExit as e:
        code = int(e.code or 0)
    said = capsys.readouterr().err
    assert code == 2 and words in said and "Traceback" not in said


def test_a_config_that_unfolds_without_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert fit(["--config", str(tmp_path / "bomb.yaml")]) == 2
    assert "stands for more than" in capsys.readouterr().err


def test_two_runs_never_share_a_folder(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, time; from pathlib import Path; from omfa.files import sole\n"
    code += "with sole(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(120)"
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        assert fit(arguments(records, tmp_path, 2)) == 2
        other.kill()
    assert "another call is at work" in capsys.readouterr().err


def test_an_exported_model_is_the_runs_own(records: Path, tmp_path: Path) -> None:
    assert fit(arguments(records, tmp_path / "run", 2, "--save_every=2", "--trainer.callbacks=SaveModel")) == 0
    for name in ("one", "two"):
        torch.manual_seed(hash(name) % 1000)
        assert export.main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / name)]) == 0
    vaes = [(f / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() for f in (
        tmp_path / "run" / "model", tmp_path / "one", tmp_path / "two")]  # fmt: skip
    assert vaes[0] == vaes[1] == vaes[2]
