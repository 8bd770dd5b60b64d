"""Orders: what a person asks for, as plain values; the command line, batches, the page and the nodes share them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import place
from omfa.components import Category
from omfa.images import ENOUGH, as_list, read_image
from omfa.pipeline import OMFAPipeline
from omfa.request import check_garments
from omfa.tasks import Estimate, NoEstimator, PoseEstimator

TaskName = Literal["try-off", "try-on", "transfer", "turntable"]
TASKS: tuple[TaskName, ...] = ("try-off", "try-on", "transfer", "turntable")
KEEPS = ("auto", "photo", "others", "nothing")
MOST_VIEWS = 360  # whole degrees name the pictures


class PoseOf:
    """The pose of somebody in a photo, still to be estimated."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture


class NamedPose(BodyParameters):
    """A pose by its name: nobody's own in any photo."""


Pose = BodyParameters | Image.Image | PoseOf | None
"""Body parameters, a pose map, a photo of somebody in that pose, or the portrait's own."""


def read_pose(text: str) -> BodyParameters | PoseOf:
    """The pose that a word or a file says: a name of ``NAMED_POSES``, an ``.npz``, or a photo of somebody in it.

    Raises:
        ValueError: no such name or file, or one that can't be read.
    """
    if text in NAMED_POSES:
        return named_pose(text)
    return BodyParameters.load(Path(text)) if text.lower().endswith(".npz") else PoseOf(read_image(text, enough=ENOUGH))


def body_beside(picture: str | Path) -> BodyParameters | None:
    """The body in a head crop or a garment's picture, where it lies beside it: ``anna.npz`` beside ``anna.png``.

    Raises:
        ValueError: a file that can't be read.
    """
    beside = Path(picture).with_suffix(".npz")
    return BodyParameters.load(beside) if beside.is_file() else None


def named_pose(name: str, size: tuple[int, int] = (1024, 768), yaw: float = 0.0) -> NamedPose:
    """A pose by its name, stood before a camera.

    Args:
        name: of ``NAMED_POSES``.
        size: (H, W) of the picture.
        yaw: degrees to the person's own left.

    Raises:
        ValueError: no such name.
    """
    if name not in NAMED_POSES:
        raise ValueError(f"{name!r} is no named pose; choose from {', '.join(NAMED_POSES)}")
    return NamedPose(**vars(place(load_body(), NAMED_POSES[name], image_size=size, yaw=yaw)))


@dataclass(frozen=True, kw_only=True)
class Order:
    """One picture, or set of pictures, to make.

    Args:
        task: one of ``TASKS``.
        name: what its files begin with.
        photo: try-off: who wears the garments; else who shall wear them. A try-on may go without.
        source: transfer alone: who wears the garments.
        garments: category to picture, or to several from inside to outside, to put on.
        garment_poses: category to the bodies in those pictures, None where one is not known.
        categories: to take off.
        face: head crop; None takes the photo's.
        face_pose: the body whose head it shows, where it is known.
        pose: see ``Pose``. With keep "photo" it must be the photo's own.
        keep: one of ``KEEPS``. A turntable's pictures are new, all of them.
        views: of a turntable.

    Raises:
        ValueError: what can never be made.
    """

    task: TaskName
    name: str
    photo: Image.Image | None = None
    source: Image.Image | None = None
    garments: Mapping[str, Image.Image | Sequence[Image.Image]] = field(default_factory=dict)
    garment_poses: Mapping[str, Sequence[BodyParameters | None]] = field(default_factory=dict)
    categories: tuple[str, ...] = (Category.UPPER.value,)
    face: Image.Image | None = None
    face_pose: BodyParameters | None = None
    pose: Pose = None
    keep: str = "auto"
    views: int = 8

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task {self.task!r} must be one of {', '.join(TASKS)}")
        if self.keep not in KEEPS:
            raise ValueError(f"keep {self.keep!r} must be one of {', '.join(KEEPS)}")
        if unknown := [c for c in (*self.garments, *self.categories) if c not in set(Category)]:
            raise ValueError(f"{unknown[0]!r} is no garment; choose from {', '.join(Category)}")
        if self.task == "try-on" and not self.garments and self.photo is None:
            raise ValueError("people are always dressed: give a garment like upper=PICTURE, or a photo, or both")
        if self.photo is None and self.task != "try-on":
            raise ValueError(f"a {self.task} needs a photo")
        if self.task == "transfer" and self.source is None:
            raise ValueError("a transfer needs a source, the photo of who wears the garments")
        if self.task in ("try-off", "transfer") and not self.categories:
            raise ValueError(f"a {self.task} needs a category to take off: {', '.join(Category)}")
        if not 1 <= self.views <= MOST_VIEWS:
            raise ValueError(f"views {self.views} must be from 1 to {MOST_VIEWS}")
        if self.keep == "photo" and self.task != "try-off":
            self._check_kept()

    def _check_kept(self) -> None:
        """Refuse what is never in a photo that is kept."""
        if self.task == "turntable":
            raise ValueError("a turntable makes new pictures: keep 'others', or 'nothing'")
        other = isinstance(self.pose, PoseOf) and self.photo is not None and self.pose.picture != self.photo
        if other or isinstance(self.pose, NamedPose):
            raise ValueError("keep 'photo' keeps the photo's own pose: give no other, or keep 'others'")
        if self.face is not None:
            raise ValueError("keep 'photo' keeps the photo's own face: give no other, or keep 'others'")

    @property
    def stems(self) -> list[str]:
        """Names of the pictures it makes, without suffix."""
        return stems(self.task, self.name, self.categories, self.views)

    @property
    def given(self) -> list[Image.Image]:
        """Its pictures, for a contact sheet."""
        pose = self.pose.picture if isinstance(self.pose, PoseOf) else self.pose
        worn = [p for pictures in self.garments.values() for p in as_list(pictures)]
        several = (self.source, self.photo, *worn, self.face, pose)
        return [p for p in several if isinstance(p, Image.Image)]

    @property
    def needs_estimator(self) -> bool:
        """Whether pose or face is to be taken from a photo."""
        if self.task == "try-off":
            return False  # merely better with one
        seen = self.pose is None or (self.face is None and self.keep != "photo")
        return isinstance(self.pose, PoseOf) or (self.photo is not None and seen)

    def check(self, pipe: OMFAPipeline) -> None:
        """Refuse garments that a model can't take off or put on, before a body is looked for.

        Raises:
            ValueError: says which, and what works.
        """
        taken = self.categories if self.task in ("try-off", "transfer") else ()
        check_garments(pipe.canvas, taken, self._worn, pipe.config.join, pipe.config.accessories)

    def make(self, pipe: OMFAPipeline, **options: Any) -> dict[str, Image.Image]:
        """Pictures by file name without suffix.

        Args:
            pipe: with a ``pose_estimator``, where one is needed.
            options: of the pipeline's general call.

        Raises:
            ValueError: what the pipeline or the estimator says.
        """
        self.check(pipe)
        if self.task == "try-off":
            made = pipe.try_off(_given(self.photo), self.categories, self._pose(pipe), **options)
            pictures = [made.garments[category][0] for category in self.categories]
            return dict(zip(self.stems, pictures, strict=True))
        keep: Any = None if self.keep == "nothing" else self.keep
        if self.face is not None and self.face_pose is not None:
            options["face_pose"] = self.face_pose
        if stands := {c: [list(several)] for c, several in self.garment_poses.items() if any(several)}:
            options["garment_poses"] = stands
        if self.task == "turntable":
            pose: Any = self._pose(pipe)
            made = pipe.turntable(self.photo, self._worn, pose, self.face, self.views, keep=keep, **options)
            return dict(zip(self.stems, made.images, strict=True))
        if self.task == "try-on":
            made = pipe.try_on(self.photo, self._worn, self._pose(pipe), self.face, keep, **options)
        else:
            source, photo = _given(self.source), _given(self.photo)
            made = pipe.transfer(source, photo, self.categories, self._pose(pipe), self.face, keep, **options)
        return {self.name: made.person[0]}

    @property
    def _worn(self) -> dict[str, Any]:
        return {category: [as_list(pictures)] for category, pictures in self.garments.items()}

    def _pose(self, pipe: OMFAPipeline) -> Any:
        if not isinstance(self.pose, PoseOf):
            return self.pose
        if pipe.pose_estimator is None:
            raise ValueError("a pose can't be taken from a photo without an estimator; give a named pose, or an .npz")
        return pipe.pose_estimator(self.pose.picture).params


def lazy_estimator(make: Callable[[], PoseEstimator]) -> PoseEstimator:
    """A pose estimator that is made at its first use; where its tools are missing, each use says the cure.

    It raises NoEstimator there.
    """
    made: list[PoseEstimator] = []

    def estimate(photo: Image.Image) -> Estimate:
        if not made:
            try:
                made.append(make())
            except ValueError as e:
                raise NoEstimator(str(e)) from None
        return made[0](photo)

    return estimate


def stems(task: str, name: str, categories: Sequence[str], views: int) -> list[str]:
    """Names, without suffix, of the pictures that an order of these values makes."""
    if task == "try-off":
        return [f"{name}_{category}" for category in categories]
    if task == "turntable":
        return [f"{name}_{round(360 * i / views):03d}" for i in range(views)]
    return [name]


def _given(picture: Image.Image | None) -> Image.Image:
    assert picture is not None  # checked when it was built
    return picture


def hand_estimator(pipe: OMFAPipeline, make: Callable[[], PoseEstimator], needed: bool) -> None:
    """Give a pipeline its pose estimator, where it is needed or makes pictures better.

    Raises:
        ValueError: it is needed and its tools are missing; says the cure.
    """
    if needed:
        pipe.pose_estimator = make()
    elif pipe.config.draft == "surface":
        pipe.pose_estimator = lazy_estimator(make)


def check_seed(seed: int, name: str = "seed") -> int:
    """The seed; ValueError for one that no generator takes."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"{name} {seed} must be from 0 to 2^63 - 1")
    return seed
