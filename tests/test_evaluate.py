"""Predict, evaluate, compare, report: from a records folder to the page."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from omfa import evaluate, predict
from omfa.components import TaskKind
from omfa.evaluation.pairs import Item, make_items
from omfa.evaluation.protocols import METRICS
from omfa.evaluation.report import histogram, latex, markdown, page, pictured, write_report
from omfa.evaluation.results import Results, compare
from omfa.evaluation.scoring import read_prediction, truth_masks
from omfa.records.prepared import GarmentRef, Maps, Record, read_records
from tests.conftest import full_disk
from tests.evaluation.metrics_golden import picture
from tests.records.writing import write_records
from tests.test_predict import predicted

SIZE = (192, 176)
COUNT = 20  # two portions


def pixels(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A colourful picture (H, W, 3) uint8."""
    return (picture(seed, *size)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


def shop(seed: int) -> np.ndarray:
    """A striped garment on white (H, W, 3) uint8."""
    rng = np.random.RandomState(seed)
    image = np.full((*SIZE, 3), 255, np.uint8)
    stripes = (np.arange(120) // 9 % 2)[:, None, None]
    image[30:150, 40:140] = np.where(stripes == 1, rng.randint(0, 230, 3), rng.randint(0, 230, 3))
    return image


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def wardrobe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten people in two pictures each, one garment; three with label pictures (outlines are slow)."""
    folder, records = tmp_path_factory.mktemp("wardrobe"), []
    for i in range(COUNT):
        labels = np.zeros((*SIZE, 3), np.uint8)
        labels[20:180, 50:130], labels[60:120, 50:130] = 1, 4
        save(folder / f"person/r{i}.png", pixels(i))
        save(folder / f"masks/r{i}.png", labels)
        save(folder / f"garment/r{i}.png", shop(i // 2))
        records.append(
            Record(
                f"r{i}", "test", f"p{i // 2}", f"o{i // 2}", f"person/r{i}.png", None,
                (GarmentRef("upper", f"garment/r{i}.png"),), view_yaw=9.0 * i,
                maps=Maps(labels=f"masks/r{i}.png") if i < 3 else None,
            )
        )  # fmt: skip
    write_records(folder, records)
    return folder


def predictions(wardrobe: Path, out: Path, change, task: str = "try_on", **told: object) -> Path:
    """A predictions folder: ``change(pixels, index)`` of every truth."""
    out.mkdir(parents=True, exist_ok=True)
    for i, record in enumerate(read_records(wardrobe)):
        key, path = (record.id, record.file_name) if task == "try_on" else (f"{record.id}.upper", f"garment/r{i}.png")
        save(out / f"{key}.png", change(cv2.imread(str(wardrobe / path))[..., ::-1], i))
    (out / "predictions.json").write_text(json.dumps({"model": out.name, "task": task, **told}))
    return out


def run(wardrobe: Path, made: Path, out: Path, *more: str) -> tuple[int, dict]:
    """Evaluate by the command line's door; exit code and results."""
    code = evaluate.main(["run", "--records", str(wardrobe), "--predictions", str(made), "--out", str(out), *more])
    results = out / "results.json"
    return code, json.loads(results.read_text()) if results.exists() else {}


def perfect(image: np.ndarray, i: int) -> np.ndarray:
    return image


def shifted(image: np.ndarray, i: int) -> np.ndarray:
    return np.roll(image, (2, 1), (0, 1))


def blurred(image: np.ndarray, i: int) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def recoloured(image: np.ndarray, i: int) -> np.ndarray:
    return image[..., [1, 2, 0]]


@pytest.fixture(scope="module")
def scored(wardrobe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results folders of five try-off prediction sets."""
    root, found = tmp_path_factory.mktemp("scored"), {}
    sets = {"perfect": perfect, "shifted": shifted, "blurred": blurred, "recoloured": recoloured}
    sets["wrong"] = lambda image, i: shop(i // 2 + 50)
    for name, change in sets.items():
        made = predictions(wardrobe, root / "made" / name, change, "try_off")
        code, _ = run(wardrobe, made, root / name)
        assert code == 0
        found[name] = root / name
    return found


def mean(folder: Path, name: str) -> float:
    return json.loads((folder / "results.json").read_text())["metrics"][name]["value"]


def test_perfect_is_perfect_everywhere(scored: dict[str, Path]) -> None:
    results = json.loads((scored["perfect"] / "results.json").read_text())
    assert results["scored"] == COUNT and results["problems"] == []
    wanted = {"psnr": 100.0, "psnr_garment": 100.0, "palette_error": 0.0}
    for name, row in results["metrics"].items():
        assert row["value"] == pytest.approx(wanted.get(name, 1.0), abs=1e-6)
        assert row["low"] == row["high"] == pytest.approx(row["value"])
    assert {"psnr", "psnr_garment", "ssim_luma", "ms_ssim", "palette_error"} <= set(results["metrics"])


def test_sets_are_ranked_by_the_metrics_that_see_them(scored: dict[str, Path]) -> None:
    assert mean(scored["shifted"], "palette_error") < 2 < 10 < mean(scored["recoloured"], "palette_error")
    assert mean(scored["wrong"], "palette_error") > 10 * mean(scored["blurred"], "palette_error") / 5
    for name in ("psnr", "psnr_garment"):
        assert mean(scored["blurred"], name) > mean(scored["wrong"], name)
    for name in ("ssim_rgb_valid", "ms_ssim"):
        values = [mean(scored[s], name) for s in ("perfect", "blurred", "wrong")]
        assert values[0] > values[1] > values[2]


def test_weights_that_are_missing_make_absent_metrics_not_numbers(scored: dict[str, Path]) -> None:
    results = json.loads((scored["shifted"] / "results.json").read_text())
    for name in ("lpips_alex", "dists", "fid", "kid", "clip_i", "dino"):
        assert name not in results["metrics"] and "--weights DIR" in results["absent"][name]
    assert "gpt_score" in results["deliberately_absent"]


def test_the_same_twice_and_with_two_processes(wardrobe: Path, tmp_path: Path) -> None:
    made = predictions(wardrobe, tmp_path / "made", shifted)
    for name, more in {"once": [], "two": ["--processes", "2"]}.items():
        assert run(wardrobe, made, tmp_path / name, *more)[0] == 0
    for file in ("results.json", "values.jsonl"):
        texts = {(tmp_path / name / file).read_bytes() for name in ("once", "two")}
        assert len(texts) == 1
    values = [json.loads(line) for line in (tmp_path / "once" / "values.jsonl").read_text().splitlines()]
    assert [v["key"] for v in values] == [f"r{i}" for i in range(COUNT)]
    assert {"silhouette_iou", "psnr_person", "psnr_garment"} <= set(values[0]["values"])


def test_problems_are_named_and_never_skipped(wardrobe: Path, tmp_path: Path, capsys) -> None:
    made = predictions(wardrobe, tmp_path / "made", perfect)
    (made / "r3.png").unlink()
    (made / "r5.png").write_bytes((made / "r5.png").read_bytes()[:500])
    save(made / "r7.png", pixels(7, (100, 90)))
    save(made / "r9.jpg", pixels(9))
    code, results = run(wardrobe, made, tmp_path / "out")
    assert code == 1 and results["predictions"] == COUNT and results["scored"] == COUNT - 4
    told = capsys.readouterr().err
    for key, words in {"r3": "no prediction", "r5": "damaged", "r7": "100x90", "r9": "several"}.items():
        problem = next(p["problem"] for p in results["problems"] if p["key"] == key)
        assert key in problem and words in problem and problem in told and f"{key}: {key}: " not in told
    (made / "r9.jpg").unlink()  # mended: only what changed is made again
    before = (tmp_path / "out" / "work" / "000001.json").stat().st_mtime_ns
    code, results = run(wardrobe, made, tmp_path / "out")
    assert results["scored"] == COUNT - 3
    assert (tmp_path / "out" / "work" / "000001.json").stat().st_mtime_ns == before


def test_a_label_picture_that_goes_or_comes_back(wardrobe: Path, tmp_path: Path, capsys) -> None:
    records, out = shutil.copytree(wardrobe, tmp_path / "records"), tmp_path / "out"
    made = predictions(records, tmp_path / "made", blurred)
    write_records(records, read_records(records)[1:5:3])  # r1 with a label picture, r4 without
    mask = records / "masks" / "r1.png"
    kept = mask.read_bytes()
    mask.unlink()
    code, results = run(records, made, out)
    assert code == 1 and results["scored"] == 1 and [p["key"] for p in results["problems"]] == ["r1"]
    assert "masks/r1.png" in results["problems"][0]["problem"] and "not scored: r1: " in capsys.readouterr().err
    mask.write_bytes(kept)
    code, whole = run(records, made, out)
    assert code == 0 and whole["metrics"]["palette_error"]["n"] == 1
    values = (out / "values.jsonl").read_text()
    smaller = np.zeros((*SIZE, 3), np.uint8)
    smaller[20:180, 50:130], smaller[60:62, 50:130] = 1, 4
    save(mask, smaller)
    assert run(records, made, out)[0] == 0
    run(records, made, tmp_path / "afresh")
    assert values != (out / "values.jsonl").read_text() == (tmp_path / "afresh" / "values.jsonl").read_text()


def test_killed_and_run_again(wardrobe: Path, tmp_path: Path) -> None:
    made, out = predictions(wardrobe, tmp_path / "made", shifted), tmp_path / "out"
    call = [sys.executable, "-m", "omfa.evaluate", "run", "--records", wardrobe, "--predictions", made, "--out", out]
    process = subprocess.Popen(list(map(str, call)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = out / "work" / "000000.json"
    deadline = time.monotonic() + 120
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert first.exists()
    written = first.stat().st_mtime_ns
    assert run(wardrobe, made, out)[0] == 0
    assert first.stat().st_mtime_ns == written
    run(wardrobe, made, tmp_path / "whole")
    assert (out / "results.json").read_bytes() == (tmp_path / "whole" / "results.json").read_bytes()


def test_wrong_calls_end_with_two_and_one_line(wardrobe: Path, tmp_path: Path, capsys) -> None:
    made = predictions(wardrobe, tmp_path / "made", perfect)
    calls = {
        "no protocol": ["--protocol", "mine"],
        "is for": ["--protocol", "omfa-vitonhd-tryoff"],
        "holds nothing to score": ["--split", "nowhere"],
        "unpaired predictions need": ["--pairs", "unpaired"],
    }
    for words, more in calls.items():
        assert run(wardrobe, made, tmp_path / "out", *more)[0] == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    (made / "predictions.json").unlink()
    assert run(wardrobe, made, tmp_path / "out")[0] == 2
    assert "--task" in capsys.readouterr().err
    assert run(wardrobe, made, tmp_path / "few", "--task", "try_on", "--max-yaw", "30")[1]["scored"] == 4
    shutil.rmtree(made)
    made.mkdir()
    assert run(wardrobe, made, tmp_path / "none", "--task", "try_on")[0] == 2
    assert "none of 20 predictions" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "none").iterdir()] == ["work"]


NONSENSE = {"limit": ["x", -1], "max_yaw": ["x"], "split": [5], "garments_from": [5, {"a": []}]}
NONSENSE |= {"categories": ["upper", [], ["shirt"]]}


@pytest.mark.parametrize("told", [{name: value} for name, values in NONSENSE.items() for value in values])
def test_predictions_that_say_nonsense_are_named(wardrobe: Path, tmp_path: Path, capsys, told: dict) -> None:
    made = predictions(wardrobe, tmp_path / "made", perfect, **told)
    assert run(wardrobe, made, tmp_path / "out")[0] == 2
    err = capsys.readouterr().err
    assert f"{made / 'predictions.json'}: {next(iter(told))!r} can't be" in err and err.count("\n") == 1


class _Pooled(torch.nn.Module):
    """Stands where Inception's TorchScript stands: pictures to features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 5, 7), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def test_set_metrics_and_their_comparison(wardrobe: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(_Pooled()).save(str(tmp_path / "inception-2015-12-05.pt"))
    folders = {}
    for name, change in {"perfect": perfect, "blurred": blurred, "recoloured": recoloured}.items():
        made = predictions(wardrobe, tmp_path / "made" / name, change)
        assert run(wardrobe, made, tmp_path / name, "--weights", str(tmp_path))[0] == 0
        folders[name] = tmp_path / name
    assert mean(folders["perfect"], "fid") == pytest.approx(0, abs=1e-6) and mean(folders["perfect"], "kid") < 0
    assert mean(folders["blurred"], "fid") < mean(folders["recoloured"], "fid")
    results = json.loads((folders["blurred"] / "results.json").read_text())
    assert results["metrics"]["fid"]["low"] is None and results["metrics"]["fid"]["spread"] > 0
    kid = results["metrics"]["kid"]
    assert kid["low"] < kid["value"] < kid["high"]
    assert results["weights"]["inception"]["sha256"]
    found = compare([Results(folders["blurred"]), Results(folders["recoloured"])])["pairs"][0]["metrics"]
    for name in ("fid", "kid"):
        wanted = mean(folders["recoloured"], name) - mean(folders["blurred"], name)
        assert found[name]["difference"] == pytest.approx(wanted, rel=1e-9)
        assert found[name]["low"] < wanted < found[name]["high"]


def test_compare_is_fair(scored: dict[str, Path], capsys) -> None:
    found = compare([Results(scored["wrong"]), Results(scored["perfect"])])
    for name, row in found["pairs"][0]["metrics"].items():
        better = row["difference"] > 0 if METRICS[name].better == "higher" else row["difference"] < 0
        assert better and row["n"] == COUNT
        assert row["wins"] == 1.0 or name.startswith("pattern")  # another garment may show the same kind of pattern
        assert row["low"] <= row["difference"] <= row["high"]
    same = compare([Results(scored["wrong"]), Results(scored["wrong"])])["pairs"][0]["metrics"]["psnr"]
    assert same["difference"] == 0 and same["wins"] == 0.5
    assert evaluate.main(["compare", str(scored["wrong"]), str(scored["perfect"])]) == 0
    assert "perfect against wrong" in capsys.readouterr().out
    assert evaluate.main(["compare", str(scored["wrong"])]) == 2


def test_report(scored: dict[str, Path], tmp_path: Path) -> None:
    results = [Results(scored["shifted"]), Results(scored["blurred"])]
    written = {p.name: p.read_text() for p in write_report(results, tmp_path, pictures=5)}
    assert set(written) == {"table.md", "table.tex", "index.html", "comparison.txt"}
    value = f"{mean(scored['shifted'], 'psnr'):.2f}"
    assert all(value in written[name] for name in ("table.md", "table.tex", "index.html"))
    text = written["index.html"]
    assert "http://" not in text and "https://download" in text  # the cure may be named, nothing is fetched
    assert "default-src 'none'" in text and "<script src" not in text and "<link" not in text
    data = json.loads(text.split('type="application/json">')[1].split("</script>")[0])
    assert len(data["items"]) == COUNT and sum(i["pictures"] is not None for i in data["items"]) == 5
    shown = next(i["pictures"] for i in data["items"] if i["pictures"])
    assert shown["truth"].startswith("data:image/jpeg;base64,") and len(shown["models"]) == 2 and shown["given"]


def test_names_cannot_break_the_page_or_the_table(scored: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(scored["shifted"], copy)
    summary = json.loads((copy / "results.json").read_text()) | {"name": "</script><b>50 % & #1_|"}
    (copy / "results.json").write_text(json.dumps(summary))
    results = [Results(copy)]
    text = page(results, 2)
    assert "</script><b>" not in text and text.count("</script>") == 2
    assert r"50 \% \& \#1\_|" in latex(results)


def changed(folder: Path, out: Path, **summary: object) -> Results:
    """A copy of a results folder with other words in its summary."""
    shutil.copytree(folder, out)
    told = json.loads((out / "results.json").read_text()) | summary
    (out / "results.json").write_text(json.dumps(told))
    return Results(out)


def test_no_winner_over_different_records(scored: dict[str, Path], tmp_path: Path) -> None:
    results = [Results(scored["perfect"]), changed(scored["blurred"], tmp_path / "copy")]
    assert "**100.00**" in markdown(results) and "different records" not in markdown(results)
    values = (tmp_path / "copy" / "values.jsonl").read_text().splitlines()
    (tmp_path / "copy" / "values.jsonl").write_text("\n".join(values[1:]) + "\n")
    text = markdown([results[0], Results(tmp_path / "copy")])
    assert "**" not in text and "different records: PSNR dB" in text


def test_half_the_pictures_are_a_random_choice(scored: dict[str, Path]) -> None:
    results = [Results(scored["shifted"])]
    keys = list(results[0].lines)
    for limit in (1, 6, 11):
        shown, drawn = pictured(results, keys, limit)
        assert len(shown) == limit and drawn <= shown and len(drawn) >= limit / 2
        assert drawn == set(pictured([Results(scored["wrong"])], keys, limit)[1]) or len(drawn) > (limit + 1) // 2
    assert pictured(results, keys, 99) == (set(keys), set(keys))


def test_damaged_results_and_other_weights_are_named(scored: dict[str, Path], tmp_path: Path) -> None:
    a, b = (changed(scored["perfect"], tmp_path / n, weights={"dino": {"file": "x", "sha256": n}}) for n in ("a", "b"))
    with pytest.raises(ValueError, match="different weights of dino"):
        compare([a, b])
    (tmp_path / "b" / "values.jsonl").write_text('{"key": ')
    with pytest.raises(ValueError, match=r"values\.jsonl is damaged"):
        compare([Results(tmp_path / "b"), Results(tmp_path / "b")])
    (tmp_path / "b" / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"b/results\.json is not JSON .* run the evaluation again"):
        Results(tmp_path / "b")


def test_histogram_of_one_value() -> None:
    assert "NaN" not in histogram(METRICS["psnr"], [np.array([3.0, 3.0])]).replace("nan", "NaN")


def test_masks_of_both_kinds(wardrobe: Path, tmp_path: Path) -> None:
    record = read_records(wardrobe)[0]
    masks = truth_masks(wardrobe, Item(record), SIZE)
    assert masks["person"].sum() == 160 * 80 and masks["upper"].sum() == 60 * 80 and "lower" not in masks
    parts = np.zeros((*SIZE, 3), np.uint8)
    parts[10:20], parts[20:30] = 9, 3
    save(tmp_path / "parts.png", parts)
    parsed = Record("a", "test", "p", "o", "a.png", maps=Maps("parts.png"))
    masks = truth_masks(tmp_path, Item(parsed), SIZE)
    assert masks["upper"].sum() == 10 * SIZE[1] and masks["person"].sum() == 20 * SIZE[1]
    with pytest.raises(ValueError, match=r"\.\."):
        truth_masks(tmp_path, Item(Record("a", "t", "p", "o", "a.png", maps=Maps("../x.png"))), SIZE)


# ---------------------------------------------------------------------------------------- predicted, then judged
def test_unpaired_try_on_wears_another_persons_outfit(records: Path, tmp_path: Path) -> None:
    assert predicted(records, tmp_path / "made", "--task", "try_on", "--pairs", "unpaired") == 0
    told = json.loads((tmp_path / "made" / "predictions.json").read_text())
    by_id = {r.id: r for r in read_records(records)}
    assert set(told["garments_from"]) == set(by_id)
    for person, donor in told["garments_from"].items():
        assert by_id[person].person_id != by_id[donor].person_id
    torch.jit.script(_Pooled()).save(str(tmp_path / "inception-2015-12-05.pt"))
    code, results = run(records, tmp_path / "made", tmp_path / "out", "--weights", str(tmp_path))
    assert code == 0 and results["pairing"] == "unpaired" and set(results["metrics"]) == {"fid", "kid"}
    assert evaluate.main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page")]) == 0


def test_a_full_disk_is_named_and_leaves_nothing_half_written(
    records: Path, wardrobe: Path, tmp_path: Path, capsys
) -> None:
    out, made = tmp_path / "out", predictions(wardrobe, tmp_path / "made", perfect)
    with full_disk(4500):
        assert predicted(records, out, "--task", "try_off") == 2
    err = capsys.readouterr().err
    assert str(out) in err and "free some space" in err and err.count("\n") == 1
    assert {p.name for p in out.iterdir()} == {"predictions.json", "flops.json"}
    assert predicted(records, out, "--task", "try_off") == 0
    with full_disk(4200):
        assert run(wardrobe, made, tmp_path / "scores")[0] == 2
    assert "free some space" in capsys.readouterr().err
    assert not [p for p in (tmp_path / "scores").rglob("*") if p.suffix == ".part" or p.name == "results.json"]


def test_what_is_predicted_is_what_is_scored(wardrobe: Path, tmp_path: Path) -> None:
    every = read_records(wardrobe)
    bare = Record("bare", "test", "p", "o", "person/r0.png", view_yaw=0.0)
    assert [i.key for i in make_items([bare, *every], TaskKind.TRY_ON, None, every, 2)] == ["r0", "r1"]
    assert make_items([bare], TaskKind.TRY_OFF, None, every) == ()
    made = predictions(wardrobe, tmp_path / "made", perfect, split="test", max_yaw=60, limit=2)
    call = ["run", "--records", str(wardrobe), "--predictions", str(made), "--out", str(tmp_path)]
    assert [i.key for i in evaluate.prepare(evaluate.parser().parse_args(call)).items] == ["r0", "r1"]
    more = evaluate.prepare(evaluate.parser().parse_args([*call, "--limit", "50"])).items
    assert [i.key for i in more] == [f"r{i}" for i in range(7)]


def test_the_pipeline_itself_predicts(compact, records: Path, tmp_path: Path) -> None:
    compact.save_pretrained(tmp_path / "model")
    call = ["--records", str(records), "--model", str(tmp_path / "model"), "--steps", "2", "--limit", "3"]
    for task in ("try_off", "try_on"):
        assert predict.main([*call, "--task", task, "--out", str(tmp_path / task)]) == 0
        told = json.loads((tmp_path / task / "predictions.json").read_text())
        assert told["flops"] > 1e6 and told["peak_memory_mb"] > 10
        code, results = run(records, tmp_path / task, tmp_path / f"{task}-scores")
        assert code == 0 and results["scored"] == 3 and results["speed"]["steps"] == 2


def test_a_folder_somebody_else_made(wardrobe: Path, tmp_path: Path) -> None:
    for i in range(COUNT):
        save(tmp_path / f"made/r{i}.webp", pixels(i))
    assert read_prediction(tmp_path / "made", "r0").size == SIZE[::-1]
    code, results = run(wardrobe, tmp_path / "made", tmp_path / "out", "--task", "try_on", "--name", "theirs")
    assert code == 0 and results["name"] == "theirs" and results["task"] == TaskKind.TRY_ON
