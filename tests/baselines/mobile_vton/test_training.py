"""Each loss on a problem of two records: alone it moves what it should; removed, it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn

from omfa.backbone import posterior
from omfa.baselines.mobile_vton import losses
from omfa.baselines.mobile_vton.encode import encode_records
from omfa.baselines.mobile_vton.examples import TryOnDataModule, TryOnDataset, collate, sources
from omfa.baselines.mobile_vton.pipeline import MobileVTON
from omfa.baselines.mobile_vton.teacher import Discriminator, velocity_of
from omfa.baselines.mobile_vton.training import Draws, MobileVTONModule, Weights
from omfa.records.prepared import RecordError, read_records
from tests.baselines.mobile_vton import tiny, two_records
from tests.baselines.mobile_vton.two_records import NONE, batch, fit, make_teacher, module, samples_error

ALONE = ["diffusion", "feature", "adversarial", "consistency"]


def size(network: nn.Module | None) -> float:
    """Sum of the absolute gradients."""
    grads = [] if network is None else [p.grad for p in network.parameters() if p.grad is not None]
    return sum(float(g.abs().sum()) for g in grads)


def student_gradients(weights: dict[str, float]) -> tuple[float, float, MobileVTONModule]:
    """Of TryonNet and GarmentNet in one pass, with a teacher that knows nothing."""
    tryon, garment = tiny.networks()
    made = MobileVTONModule(tryon, garment, make_teacher(), Weights(**{**NONE, **weights}))
    if made.fake is not None:  # as it begins it is the teacher, and their scores don't differ
        nn.init.normal_(made.fake.proj_out.weight, std=0.1)
    b = batch(0)
    made.total(made.student_losses(b, Draws(b.generator, made.device))[1]).backward()
    return size(tryon), size(garment), made


@pytest.mark.parametrize("name", ALONE)
def test_a_loss_alone_reaches_the_networks_it_is_for(name: str) -> None:
    tryon, garment, made = student_gradients({name: 1.0})
    assert garment > 0 and (tryon > 0) == (name != "consistency")
    assert size(made.fake) == size(made._teacher[0]) == 0
    assert (made.fake is not None) == (name == "feature")
    assert (made.adversary is not None) == (name == "adversarial")


def test_the_weighted_sum_is_the_papers() -> None:
    made = module({"diffusion": 1.0})
    made.weights = Weights()
    ones = {k: torch.tensor(1.0) for k in [*ALONE, "garment_feature"]}
    assert float(made.total(ones)) == pytest.approx((1 + 1e-2 + 5e-3) + (1e-2 + 0.5))


def test_flow_matching_goes_there_and_back() -> None:
    x0, noise, s = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3), torch.tensor([0.3, 0.9])
    x = losses.noised(x0, noise, s)
    torch.testing.assert_close(losses.clean(x, noise - x0, s), x0)
    assert float(losses.flow_loss(noise - x0, x0, noise)) == 0
    torch.testing.assert_close(losses.shifted(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([0.0, 0.75, 1.0]))


def test_samples_are_moved_along_the_difference_of_scores() -> None:
    x, true, fake = (torch.randn(2, 4, 3, 3, dtype=torch.float64) for _ in range(3))
    x.requires_grad_(True)
    losses.feature_loss(x, true, fake).backward()
    # independent: scores of Gaussians around each clean picture, at one level of noise
    s, x_s = 0.4, torch.randn(2, 4, 3, 3, dtype=torch.float64)
    s_true, s_fake = (-(x_s - (1 - s) * clean) / s**2 for clean in (true, fake))
    along = (s_fake - s_true) * s**2 / (1 - s)
    scale = (x.detach() - true).abs().mean((1, 2, 3), keepdim=True) * x.numel()
    torch.testing.assert_close(x.grad, along / scale)
    same = x.detach().clone().requires_grad_(True)
    losses.feature_loss(same, true, true).backward()
    assert not same.grad.any()  # where both agree nothing moves


def test_hinge_and_accuracy() -> None:
    real, fake = torch.tensor([[2.0, 2.0], [-3.0, 1.0]]), torch.tensor([[-2.0, -2.0], [0.5, -0.1]])
    assert float(losses.telling_loss(real, fake)) == pytest.approx((0 + 0 + 4 + 0) / 4 + (0 + 0 + 1.5 + 0.9) / 4)
    assert float(losses.telling_accuracy(real, fake)) == 0.5
    assert float(losses.fooling_loss(fake)) == pytest.approx(3.6 / 4)


def test_weights_and_settings_out_of_range() -> None:
    tryon, garment = tiny.networks()
    for words, make in [
        ("at least 0, and not all of them 0", lambda: Weights(**NONE)),
        ("at least 0", lambda: Weights(feature=-1)),
        ("want a teacher", lambda: MobileVTONModule(tryon, garment)),
        ("fake_updates 0 >= 1", lambda: MobileVTONModule(tryon, garment, make_teacher(), fake_updates=0)),
    ]:
        with pytest.raises(ValueError, match=words):
            make()


def test_what_is_drawn_depends_on_the_example_alone() -> None:
    both = batch(3)
    first, second = two_records.example(0, 3), two_records.example(1, 3)
    draws = Draws(both.generator, torch.device("cpu")).normal((4, 8, 4))
    for i, one in enumerate((first, second)):
        assert torch.equal(Draws([one.generator], torch.device("cpu")).normal((4, 8, 4))[0], draws[i])


def test_the_teachers_tokens_are_those_behind_its_blocks() -> None:
    teacher, b = make_teacher(), batch(0)
    texts = module({"diffusion": 1.0}).student_losses(b, Draws(b.generator, torch.device("cpu")))[0].texts
    x, s = torch.randn(4, 4, 8, 4), torch.tensor([0.1, 0.4, 0.7, 0.9])
    velocity, tokens = velocity_of(teacher, x, s, texts, (0, 1))
    assert velocity.shape == x.shape and [t.shape for t in tokens] == [(4, 8, 32)] * 2
    assert not any(m._forward_hooks for m in teacher.modules())
    logits = Discriminator.of(teacher)(tokens)
    assert logits.shape == (4, 16)


def test_dropped_examples_have_no_garment_features() -> None:
    made, b = module({"diffusion": 1.0}), batch(0)
    made.tryon.eval()
    seen: list[tuple[Tensor, ...]] = []
    made.tryon.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[3])))
    object.__setattr__(b, "given", torch.tensor([1.0, 0.0]))
    made.student_losses(b, Draws(b.generator, made.device))
    assert all(f[0].any() and not f[1].any() for f in seen[0])


def test_one_step_moves_all_networks_and_counts_once() -> None:
    made = MobileVTONModule(*tiny.networks(), make_teacher(), fake_updates=2)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    log = fit(made, 2)
    assert made.trainer.global_step == 2
    moved = {k.split(".")[0] for k, v in made.state_dict().items() if not torch.equal(v, before[k])}
    assert moved == {"tryon", "garment", "fake", "adversary"}
    assert {"loss/fake_score", "loss/discriminator", "accuracy", "loss/garment_feature"} <= set(log.rows[0])


@pytest.mark.slow
def test_diffusion_and_consistency_alone() -> None:
    fresh = samples_error(module({"consistency": 1.0}))
    made = module({"consistency": 0.5})
    log = fit(made, 60)
    person, garment = samples_error(made)
    print("consistency", fresh, "->", (person, garment))
    assert garment < 0.1 * fresh[1] and abs(person - fresh[0]) < 0.1
    made = module({"diffusion": 1.0})
    log = fit(made, 60)
    person, garment = samples_error(made)
    print("diffusion", fresh, "->", (person, garment), log.mean("loss", slice(0, 10)), log.mean("loss", slice(50, 60)))
    assert person < 0.8 * fresh[0] and garment > 0.5 * fresh[1]


@pytest.mark.slow
def test_the_teachers_scores_alone_bring_the_student_to_what_it_knows() -> None:
    fresh = samples_error(module({"consistency": 1.0}))
    made = module({"feature": 1.0})
    fit(made, 150)
    after = samples_error(made)
    print("feature", fresh, "->", after)
    assert after[0] < 0.75 * fresh[0] and after[1] < 0.5 * fresh[1]


@pytest.mark.slow
def test_the_fake_score_follows_the_student() -> None:
    made = module({"feature": 1.0}, learning_rate=1e-9)
    log = fit(made, 60)
    first, last = log.mean("loss/fake_score", slice(0, 15)), log.mean("loss/fake_score", slice(45, 60))
    print("fake score", first, "->", last)
    assert last < 0.9 * first


@pytest.mark.slow
def test_the_adversary_alone_makes_samples_more_real_to_it() -> None:
    def run(rate: float) -> tuple[float, float, float]:
        made = module({"adversarial": 1.0}, learning_rate=rate, adversary_rate=1e-9)
        optimizer = torch.optim.AdamW(made.adversary.parameters(), 5e-3)

        def told(step: int) -> tuple[Tensor, Tensor]:
            b = batch(step)
            draws = Draws(b.generator, made.device)
            with torch.no_grad():
                samples, _ = made.student_losses(b, draws)
            return made.tell_apart(samples, draws)

        for step in range(2000, 2060):
            losses.telling_loss(*told(step)).backward()
            optimizer.step()
            optimizer.zero_grad()
        held_out = [told(step) for step in range(3000, 3020)]
        accuracy = sum(float(losses.telling_accuracy(*pair)) for pair in held_out) / 20
        before = sum(float(fake.mean()) for _, fake in held_out) / 20
        fit(made, 30)
        return accuracy, before, sum(float(told(step)[1].mean()) for step in range(3000, 3020)) / 20

    accuracy, before, after = run(2e-3)
    _, _, without = run(1e-9)
    print("adversary", accuracy, before, "->", after, "without", without)
    assert accuracy > 0.6 and after > before + 0.2 and abs(without - before) < 0.1


@pytest.mark.slow
def test_with_all_losses_the_discriminator_neither_wins_nor_loses() -> None:
    made = module({"diffusion": 1.0, "feature": 1e-2, "adversarial": 5e-3, "consistency": 0.5})
    log = fit(made, 90)
    means = [log.mean("accuracy", slice(at, at + 30)) for at in (0, 30, 60)]
    print("accuracy", means)
    assert all(0.5 <= m <= 0.95 for m in means)


# --------------------------------------------------------------------------------------------------- from records
@pytest.fixture(scope="module")
def encoded(records: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The drawn records' latents, and the model's folder."""
    model, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("encoded")
    pipe = MobileVTON(tiny.parts(model))
    pipe.quiet = True
    pipe.save_pretrained(model)
    assert encode_records(pipe, records, out, tiny.SIZE) == 8
    assert encode_records(pipe, records, out, tiny.SIZE) == 8  # goes on, and makes nothing twice
    with pytest.raises(ValueError, match="of another size or VAE"):
        encode_records(pipe, records, out, (96, 64))
    return out, model


def test_records_as_examples(records: Path, encoded: tuple[Path, Path]) -> None:
    data = TryOnDataset(records, encoded[0], None, drop=0.0)
    by_id = {r.id: r for r in read_records(records)}
    for position, record in enumerate(data.records):
        for photo in data.sources[record.id]:
            other = by_id[photo.split("/")[0]]
            assert other.person_id == record.person_id
            assert photo.endswith("/portrait") or other.outfit_id != record.outfit_id
        example = data[0, position]
        assert example.target.shape == example.person.shape == example.garment.shape == (8, 8, 4)
        assert not torch.equal(example.target, example.person) and example.generator == data[0, position].generator
    dropped = TryOnDataset(records, encoded[0], None, drop=0.999)[0, 0]
    assert not dropped.given and torch.equal(dropped.features, data.nothing)
    assert collate([data[0, 0], data[0, 1]]).text.shape == (2, 77, 40)


def test_an_encoding_that_was_stopped_goes_on_at_its_size_alone(
    records: Path, encoded: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = MobileVTON.from_pretrained(encoded[1])
    pipe.quiet = True
    few = iter([posterior] * 4)
    with monkeypatch.context() as stopped, pytest.raises(StopIteration):
        stopped.setattr("omfa.baselines.mobile_vton.encode.posterior", lambda *given: next(few)(*given))
        encode_records(pipe, records, tmp_path, tiny.SIZE)
    with pytest.raises(ValueError, match="of another size or VAE"):
        encode_records(pipe, records, tmp_path, (96, 64))
    with pytest.raises(RecordError, match=r"lacks \d of 8 records"):
        TryOnDataset(records, tmp_path, None)
    encode_records(pipe, records, tmp_path, tiny.SIZE)
    assert len(TryOnDataset(records, tmp_path, None)) > 0


def test_records_that_make_no_example(records: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="nobody is seen in two outfits"):
        sources([r for r in read_records(records) if r.portrait is None][:1])
    with pytest.raises(RecordError, match=r"run python -m omfa\.baselines\.mobile_vton\.encode"):
        TryOnDataset(records, tmp_path, None)


def test_training_from_records_to_a_model_that_dresses(
    records: Path, encoded: tuple[Path, Path], tmp_path: Path
) -> None:
    tryon, garment = tiny.networks(1)
    made = MobileVTONModule(tryon, garment, make_teacher(), fake_updates=1, parts=str(encoded[1]))
    data = TryOnDataModule(str(records), str(encoded[0]), None, batch_size=2)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    pl.Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **quiet).fit(made, datamodule=data)
    assert data.state_dict() == {"consumed": 4}
    made.save(tmp_path)
    pipe = MobileVTON.from_pretrained(tmp_path)
    pipe.quiet = True
    assert all(torch.equal(v, tryon.state_dict()[k]) for k, v in pipe.parts.tryon.state_dict().items())
    photo = Image.new("RGB", (32, 64), "tan")
    assert pipe(photo, photo, "upper", num_inference_steps=1).persons[0].size == (32, 64)
