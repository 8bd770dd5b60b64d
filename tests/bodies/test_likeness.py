"""Skin and walls look like themselves, clothes like neither."""

import numpy as np
import torch

from data_prep.wardrobe.synthetic import Sample, make_outfit
from omfa.bodies.body import load_body
from omfa.bodies.drafts import Shown, changeable, draft_garment, face_mask
from omfa.bodies.likeness import likeness
from omfa.bodies.placing import turned
from omfa.bodies.surface import Draft, see
from omfa.images import pixels_to_tensor
from omfa.records.labels import LABEL_OF, Label

SIZE = (128, 96)


def near_the_front(seed: int) -> Sample:
    samples = (make_outfit(seed, index, SIZE, 1)[0] for index in range(40))
    return next(s for s in samples if abs(s.record.view_yaw or 0) < 25)


def test_skin_and_wall_are_told_from_clothes() -> None:
    for seed in (3, 4, 5):
        sample = near_the_front(seed)
        photo = Shown(pixels_to_tensor(sample.person), sample.params)
        made = draft_garment(load_body(), sample.params, photo, wall=True)  # the photo, as it is
        skin, wall, kept = likeness(load_body(), made, photo, photo)
        where = {name: made.valid & torch.from_numpy(np.isin(sample.labels, labels)) for name, labels in {
            "skin": [Label.SKIN, Label.FACE], "clothes": list(LABEL_OF.values()), "wall": [Label.BACKGROUND],
        }.items()}  # fmt: skip
        assert skin[where["skin"]].mean() > skin[where["clothes"]].mean() + 0.3, seed
        assert kept[where["skin"]].mean() > kept[where["clothes"]].mean() + 0.3, seed
        assert wall[where["wall"]].mean() > wall[where["clothes"]].mean() + 0.3, seed
        assert not skin[~made.valid].any() and not wall[~made.valid].any()


def test_a_face_never_changes_however_high_the_collar() -> None:
    sample = near_the_front(4)
    seen = see(load_body(), sample.params)
    face = face_mask(seen, load_body())
    assert face.sum() > 20
    assert np.isin(sample.labels[face.numpy()], [Label.FACE, Label.HAIR]).mean() > 0.95
    everywhere = Draft(torch.zeros(3, *SIZE), torch.ones(SIZE, dtype=torch.bool))
    where = changeable(load_body(), sample.params, everywhere, ["upper"])
    assert where[face].mean() < 0.4, "but for its soft rim"
    assert where[~face].mean() > 0.95


def test_from_behind_nothing_looks_like_skin() -> None:
    sample = near_the_front(3)
    photo = Shown(pixels_to_tensor(sample.person), turned(sample.params, 180))
    made = draft_garment(load_body(), sample.params, photo, wall=True)
    assert not likeness(load_body(), made, photo, photo)[[0, 2]].any(), "no face is seen, so nothing is known of skin"
    assert not likeness(load_body(), made).any(), "nor anything without a photo"
