"""Examples are functions of (seed, epoch, record)."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from omfa.components import Category, State, TaskKind
from omfa.pipeline import OMFAPipeline
from omfa.records.stream import Stream, draw_noise, seeded
from omfa.training.examples import (
    TRAIN_STEPS,
    Drops,
    Example,
    ExampleOptions,
    Geometry,
    RecordsDataModule,
    RecordsDataset,
    TaskWeights,
    collate,
    moved_together,
)


def dataset(records: Path, pipe: OMFAPipeline, **options: object) -> RecordsDataset:
    return RecordsDataset(records, Geometry(pipe.canvas, 4, 4), ExampleOptions(**options))  # type: ignore[arg-type]


def equal(a: Example, b: Example) -> bool:
    plain = ("id", "layout", "t", "has_pose", "unconditional", "generator")
    same = all(getattr(a, name) == getattr(b, name) for name in plain)
    tensors = [(a.pixels[s], b.pixels[s]) for s in a.pixels]
    return same and all(torch.equal(x, y) for x, y in [*tensors, (a.pose, b.pose)])


def noise(example: Example) -> torch.Tensor:
    return draw_noise([example.generator], (2, 4, 16, 12))


def test_an_example_is_a_function_of_seed_epoch_and_record(records: Path, compact: OMFAPipeline) -> None:
    data = dataset(records, compact, jitter=0.05)
    torch.manual_seed(1)
    first = data[3, 5]
    torch.manual_seed(2)
    data[0, 0]
    assert equal(first, dataset(records, compact, jitter=0.05)[3, 5])
    others = data[4, 5], data[3, 4], dataset(records, compact, seed=1)[3, 5]
    assert not any(torch.equal(noise(first), noise(other)) for other in others)


def test_the_noise_is_what_the_generator_of_seed_epoch_and_record_draws_next(
    records: Path, compact: OMFAPipeline
) -> None:
    """Bit by bit, and a row does not depend on its batch."""
    data = dataset(records, compact)
    batch = collate([data[0, i] for i in range(3)])
    drawn = draw_noise(batch.generator, (2, 4, 16, 12))
    for i, row in enumerate(drawn):
        generator = seeded(0, 0, data.records[i].id)
        data.options.drops.draw(data.layout(data.records[i], generator), generator)
        torch.randint(TRAIN_STEPS, (1,), generator=generator)
        assert torch.equal(row, torch.randn(2, 4, 16, 12, generator=generator))
        assert torch.equal(row, noise(data[0, i])[0])


def test_task_rates_over_a_thousand_draws(records: Path, compact: OMFAPipeline) -> None:
    data = dataset(records, compact)
    kinds = Counter(data.layout(data.records[0], seeded(0, i)).kind for i in range(1000))
    rates = {k: kinds[k] / 1000 for k in TaskKind}
    assert abs(rates[TaskKind.TRY_ON] - 0.45) < 0.05 and abs(rates[TaskKind.TRY_OFF] - 0.45) < 0.05
    assert abs(rates[TaskKind.JOINT] - 0.10) < 0.03


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_draws_do_not_depend_on_workers(records: Path, compact: OMFAPipeline, workers: int) -> None:
    data = dataset(records, compact)
    loader = torch.utils.data.DataLoader(data, 2, sampler=Stream(8, 2), num_workers=workers, collate_fn=collate)
    batches = list(itertools.islice(loader, 6))
    keys = list(itertools.islice(Stream(8, 2), 12))
    for n, batch in enumerate(batches):
        alone = collate([data[k] for k in keys[2 * n : 2 * n + 2]])
        assert batch.layout == alone.layout and batch.generator == alone.generator and batch.t == alone.t


def test_tasks_and_slots(records: Path, compact: OMFAPipeline) -> None:
    on = dataset(records, compact, tasks=TaskWeights(1, 0, 0), drops=Drops(0, 0, 0))[0, 0]
    assert on.layout.slots(State.TARGET) == {"person"} and "face" in on.layout.states and on.has_pose
    seen = set()
    for epoch in range(40):
        off = dataset(records, compact, tasks=TaskWeights(0, 1, 0), drops=Drops(0, 0, 1))[epoch, 0]
        assert off.layout.states["person"] is State.GIVEN and "face" not in off.layout.states and not off.has_pose
        assert (off.pose == -1).all()
        seen.add(frozenset(off.layout.categories.values()))
    both = {Category.UPPER, Category.LOWER}
    assert seen == {frozenset(both), *(frozenset({c}) for c in both)}


def test_pixels_are_fitted_and_absent_slots_white(records: Path, compact: OMFAPipeline) -> None:
    data = dataset(records, compact, tasks=TaskWeights(1, 0, 0), drops=Drops(0, 0, 0))
    dress = next(i for i, r in enumerate(data.records) if r.garments[0].category == "dress")
    example = data[0, dress]
    assert {s: tuple(p.shape) for s, p in example.pixels.items()} == {
        "person": (3, 64, 48),
        "garment_1": (3, 64, 48),
        "garment_2": (3, 64, 48),
        "face": (3, 32, 32),
    }
    assert (example.pixels["garment_2"] == 1).all() and "garment_2" not in example.layout.states


def test_person_and_pose_move_together() -> None:
    picture = torch.rand(3, 64, 48)
    a, b = moved_together([picture, picture.clone()], 0.1, seeded(1))
    assert torch.equal(a, b) and not torch.allclose(a, picture)


def test_bad_input_is_refused(records: Path, compact: OMFAPipeline) -> None:
    with pytest.raises(ValueError, match="no records of split 'nope'"):
        dataset(records, compact, split="nope")
    with pytest.raises(ValueError, match="task weights"):
        TaskWeights(0, 0, 0)


def test_timesteps_are_drawn_alike_or_from_those_named(records: Path, compact: OMFAPipeline) -> None:
    def drawn(timesteps: list[int] | None) -> list[int]:
        data = dataset(records, compact, timesteps=timesteps)
        return [t for epoch in range(600) for t in data[epoch, 0].t]

    every = drawn(None)
    assert min(every) < 20 and max(every) >= 980 and sum(every) / 600 == pytest.approx(499.5, abs=50)
    few = Counter(drawn([999, 999, 499]))
    assert set(few) == {999, 499} and few[999] == pytest.approx(400, abs=40)
    for bad in ([], [1000], [-1]):
        with pytest.raises(ValueError, match="one or more of 0 to 999"):
            RecordsDataModule(str(records), timesteps=bad)
