"""What people ask for: try-off, try-on, transfer, turntable; each a few words around the pipeline's general call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers.utils import BaseOutput
from PIL import Image

from omfa import images
from omfa.bodies.parameters import BodyParameters
from omfa.bodies.placing import turned
from omfa.canvas import Canvas
from omfa.components import Category
from omfa.images import Picture
from omfa.request import Pictures, Pose, Worn, dressed, worn_garments


class Estimate(NamedTuple):
    """What a pose estimator says of a photo: body parameters for its camera; a head crop, and the body for that (None
    where no face is seen); white where the person is (None where it does not know).
    """

    params: BodyParameters
    face: Image.Image | None
    face_params: BodyParameters | None = None
    outline: Image.Image | None = None


class NoEstimator(ValueError):
    """Nobody's body can be estimated here; says the cure."""


Keep = Literal["auto", "photo", "others"] | None
PoseEstimator = Callable[[Image.Image], Estimate]


@dataclass
class OMFAPipelineOutput(BaseOutput):
    """What a call made, and what it was given.

    Args:
        images: the pictures generated for the first target (the person, if it is one): a list of B PIL pictures; for
            ``np`` an array (B, H, W, 3) and for ``pt`` a tensor (B, 3, H, W) in [0, 1] (lists where sizes differ); for
            ``latent`` the whole canvas (B, C, h, w), or all target rows (B times targets, C, h, w), example by
            example.
        person: the person pictures, generated or the caller's own; None where there is none.
        garments: category to garment pictures, generated or the caller's own; where several of one are worn, a list of
            B lists.
    """

    images: Any
    person: Any = None
    garments: Any = None


class Tasks:
    """The everyday calls of :class:`omfa.pipeline.OMFAPipeline`."""

    canvas: Canvas
    config: Any
    pose_estimator: PoseEstimator | None
    _told = False  # that there is no estimator, once
    __call__: Callable[..., OMFAPipelineOutput]

    def try_off(
        self,
        person: Pictures,
        categories: str | Collection[str] = "upper",
        pose: Pose | Sequence[Pose | None] | None = None,
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Take garments off a photo, as shop pictures. One photo is enough.

        Args:
            person: photo of a dressed person, or B of them.
            categories: which garments: "upper", "lower", "dress", "shoes", ..., or several.
            pose: the photo's body, for a model with drafts; None: what the pipeline's ``pose_estimator`` finds, if it
                has one. Not needed; in a list, None where it is not known.
            options: of the general call.
        """
        names = [categories] if isinstance(categories, str) else list(categories or ())
        if pose is None and self.config.draft == "surface":
            pose = self._bodies(person)
        return self(targets=names, person=person, pose=pose, **options)

    def try_on(
        self,
        portrait: Pictures | None = None,
        garments: Mapping[str, Worn] | None = None,
        pose: Pose | Sequence[Pose] | None = None,
        face: Pictures | None = None,
        keep: Keep = "auto",
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Put garments on a person.

        Args:
            portrait: photo of the person, or B of them; None to go by ``face`` and ``pose`` alone.
            garments: category to garment picture or pictures, as in the general call; none keeps what the portrait
                wears.
            pose: pose map or body parameters to take; None takes the portrait's.
            face: head crop; None takes the portrait's.
            keep: "photo" changes these garments in the portrait and nothing else, in its own pose; "others" makes a new
                picture and fills the garment slots left open by try-off from the portrait; None leaves them open.
                "auto": "photo" where the model knows it and no pose is given, else "others".
            options: of the general call.

        Raises:
            ValueError: a pose or face is to be taken from the portrait and the pipeline has no ``pose_estimator``; or
                a photo is to be kept by a model that can't, or in another pose.
        """
        if keep not in ("auto", "photo", "others", None):
            raise ValueError(f"keep={keep!r} must be 'auto', 'photo', 'others' or None")
        worn = worn_garments(garments)
        if keep == "auto":
            keep = "photo" if self.config.portraits and portrait is not None and pose is None and worn else "others"
        if keep == "photo":
            return self._in_photo(portrait, worn, pose, options)
        if portrait is not None and (pose is None or face is None):
            looks = [self._estimate(p) for p in images.as_list(portrait)]
            pose = [look.params for look in looks] if pose is None else pose
            heads = [look.face for look in looks if look.face is not None]
            if face is None and len(heads) == len(looks):
                face, stands = heads, [look.face_params for look in looks if look.face_params is not None]
                options |= {"face_pose": stands} if len(stands) == len(looks) else {}
        if portrait is not None and keep == "others":
            left = self._left_open(worn)
            if left:
                several = options.get("generator")
                batch = len(several) if isinstance(several, list | tuple) else 1
                worn |= _one_each(self.try_off(_repeated(portrait, batch), left, **_shared(options)))
        return self(targets=["person"], garments=worn, face=face, pose=pose, **options)

    def transfer(
        self,
        source: Pictures,
        target: Pictures,
        categories: str | Collection[str] = "upper",
        pose: Pose | Sequence[Pose] | None = None,
        face: Pictures | None = None,
        keep: Keep = "auto",
        source_pose: Pose | Sequence[Pose] | None = None,
        **options: Any,
    ) -> OMFAPipelineOutput:
        """Take garments off one person and put them on another.

        Args:
            source: photo of who wears the garments.
            target: photo of who shall wear them.
            categories: which garments.
            pose, face, keep, options: as in :meth:`try_on`.
            source_pose: the body in ``source``, as in :meth:`try_off`.
        """
        batch = max(len(images.as_list(source)), len(images.as_list(target)))
        taken = _one_each(self.try_off(_repeated(source, batch), categories, source_pose, **_shared(options)))
        return self.try_on(_repeated(target, batch), taken, pose=pose, face=face, keep=keep, **options)

    def turntable(
        self,
        portrait: Picture | None = None,
        garments: Mapping[str, Worn] | None = None,
        pose: BodyParameters | str | os.PathLike[str] | None = None,
        face: Picture | None = None,
        views: int = 8,
        keep: Literal["others"] | None = "others",
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> OMFAPipelineOutput:
        """The same person and clothes from all sides: ``views`` pictures over the full turn, the first as in ``pose``.

        Args:
            portrait: photo of the person, or None to go by ``face`` and ``pose``.
            garments: category to garment picture, or to all that are worn at once; none keeps what the portrait wears.
            pose: body parameters (or their ``.npz``) to turn; None estimates the portrait's. A flat pose map can't be
                turned.
            face: head crop; None takes the portrait's.
            views: number of pictures; made in one batch.
            keep: as in :meth:`try_on`.
            generator: seeds the noise, which all views share.
            options: of the general call.

        Raises:
            ValueError: several people, or no pose that can be turned.
        """
        if views < 1:
            raise ValueError(f"views={views} must be 1 or more")
        given = {Category(c): g for c, g in worn_garments(garments).items() if g is not None}
        worn: dict[str, Any] = {c.value: g for c, g in dressed(given, join=self.config.join).items()}
        if any(len(images.as_list(p)) > 1 for p in (portrait, face, *worn.values())):
            raise ValueError("a turntable shows one person: give one picture of each, and call again for the next")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError("a turntable takes one generator: all views share their noise")
        if isinstance(pose, str | os.PathLike) and str(pose).lower().endswith(".npz"):
            pose = BodyParameters.load(Path(pose))
        if portrait is not None and (pose is None or face is None):
            look = self._estimate(portrait)
            pose = pose or look.params
            if face is None:
                face = look.face
                options |= {} if look.face_params is None else {"face_pose": look.face_params}
        if not isinstance(pose, BodyParameters):
            raise ValueError("a turntable needs body parameters to turn: give pose=BodyParameters.load('pose.npz')")
        if portrait is not None and keep == "others" and self._left_open(worn):
            taken = self.try_off(portrait, self._left_open(worn), **_shared(options | {"generator": generator}))
            worn |= _one_each(taken)
        poses = [turned(pose, 360.0 * i / views) for i in range(views)]
        seed = int(
            torch.randint(2**62, (1,), generator=generator, device=None if generator is None else generator.device)
        )
        device = "cpu" if generator is None else generator.device
        alike = [torch.Generator(device=device).manual_seed(seed) for _ in poses]  # all noise, shared by all views
        return self(targets=["person"], garments=worn, face=face, pose=poses, generator=alike, **options)

    def _in_photo(
        self, portrait: Pictures | None, worn: Mapping[str, Any], pose: Any, options: Mapping[str, Any]
    ) -> OMFAPipelineOutput:
        """The same photo, only these garments changed."""
        if not self.config.portraits:
            raise ValueError("this model makes new pictures: keep='others', or a model that has learned portraits")
        if portrait is None or not worn:
            raise ValueError("keep='photo' needs the portrait to change and a garment to put on")
        if pose is None:
            looks = [self._estimate(p) for p in images.as_list(portrait)]
            pose, outlines = [look.params for look in looks], [look.outline for look in looks]
            options = {"portrait_mask": None if None in outlines else outlines} | dict(options)
        own = {k: v for k, v in options.items() if k != "face_pose"}  # the face is the photo's
        return self(targets=["person"], garments=worn, portrait=portrait, pose=pose, **own)

    def _bodies(self, person: Pictures) -> list[BodyParameters | None] | None:
        """The bodies in photos, None where one is not found, with a warning; without an estimator, said once, none."""
        photos, found = images.as_list(person), list[BodyParameters | None]()
        for i, photo in enumerate(photos):
            try:
                found.append(self._estimate(photo).params)
            except NoEstimator as e:
                if not self._told:
                    warnings.warn(f"garments are taken off without a draft: {e}", stacklevel=3)
                self._told = True
                return None
            except ValueError as e:
                which = f"photo {i + 1} of {len(photos)}: " if len(photos) > 1 else ""
                warnings.warn(f"{which}the garment is taken off without a draft: {e}", stacklevel=3)
                found.append(None)
        return None if all(p is None for p in found) else found

    def _left_open(self, worn: Mapping[str, Any]) -> list[str]:
        """Categories to take from the portrait so that the person is dressed from head to foot."""
        if Category.DRESS in worn or (self.config.join != "rows" and len(worn) >= self.canvas.garments):
            return []
        left = [c.value for c in (Category.UPPER, Category.LOWER) if c.value not in worn]
        return left if self.config.join == "rows" else left[: self.canvas.garments]

    def _estimate(self, portrait: Picture) -> Estimate:
        if self.pose_estimator is None:
            raise NoEstimator(
                "pose or face is missing and this pipeline has no pose estimator: pass pose= (a pose map or "
                "BodyParameters) and face= (a head crop), or set pipe.pose_estimator (the command line does)"
            )
        return self.pose_estimator(images.read_image(portrait, "portrait"))


def as_garments(pictures: Mapping[str, list[Image.Image]], slots: Sequence[str], kind: images.OutputType) -> Any:
    """What an output says of a category: pictures as the caller wants them, or B lists of those worn at once.

    Args:
        pictures: slot to B.
        slots: of the category, from inside to outside.
        kind: as the caller wants them.
    """
    if len(slots) == 1:
        return images.as_output(pictures[slots[0]], kind)
    return [images.as_output(list(worn), kind) for worn in zip(*(pictures[s] for s in slots), strict=True)]


def _repeated(pictures: Pictures, batch: int) -> Pictures:
    """One picture as a batch of the same; several stay as they are."""
    several = images.as_list(pictures)
    return several * batch if len(several) == 1 else several


def _one_each(taken: OMFAPipelineOutput) -> dict[str, Any]:
    """What was taken off, to be put on: one garment of a category for each picture of the batch."""
    return {category: [[p] for p in pictures] for category, pictures in taken.garments.items()}


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a try-on that its own try-off takes over."""
    names = ("num_inference_steps", "guidance_scale", "generator", "eta", "callback_on_step_end")
    return {k: v for k, v in options.items() if k in names}
