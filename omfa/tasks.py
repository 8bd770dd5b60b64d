"""What people ask for: try-off, try-on, transfer, turntable; each a few words around the pipeline's general call."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
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
from omfa.few_steps import check_call
from omfa.images import Picture
from omfa.partial_diffusion import check_scheduler
from omfa.request import (
    Pictures,
    Pose,
    Request,
    Worn,
    check_sampler,
    dressed,
    read_poses,
    read_request,
    worn_garments,
)


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
_WHAT = {"pose": "a pose map or BodyParameters", "face": "a head crop"}
_LATER = ("latents", "compose", "return_dict", "callback_on_step_end")  # options that a call is not checked for
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
    scheduler: Any
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

        Raises:
            ValueError: no such category, or what the general call says.
        """
        names = _categories(categories)
        if pose is None and self.config.draft == "surface":
            self._asked(names, person=person, **_early(options))  # refused before an estimate
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
            portrait: photo of the person, or B of them; None to go by ``face`` and ``pose`` alone. Of one photo come as
                many pictures as there are generators.
            garments: category to garment picture or pictures, as in the general call; none keeps what the portrait
                wears.
            pose: pose map or body parameters to take; None takes the portrait's. Where a photo is kept it must be the
                photo's own: of another, nothing but the shape of its picture tells.
            face: head crop; None takes the portrait's. A photo that is kept keeps its face.
            keep: "photo" changes these garments in the portrait and nothing else, in its own pose; "others" makes a new
                picture and fills the garment slots left open by try-off from the portrait; None leaves them open.
                "auto": "photo" where the model knows it and neither pose nor face is given, else "others".
            options: of the general call.

        Raises:
            ValueError: a pose or face is to be taken from the portrait and the pipeline has no ``pose_estimator``; or
                a photo is to be kept by a model that can't, with another face, or in a pose of a picture of another
                shape.
        """
        return self._dressed(portrait, worn_garments(garments), pose, face, keep, options)

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

        Raises:
            ValueError: as in :meth:`try_off` and :meth:`try_on`, before anything is taken off.
        """
        names, wearers, people = _categories(categories), images.as_list(source), images.as_list(target)
        if not wearers or not people:
            which = "target=, the photo of who shall wear them" if wearers else "source=, the photo of who wears them"
            raise ValueError(f"a transfer needs {which}")
        batch = max(len(wearers), len(people), _seeds(options))
        wearers, people = _repeated(wearers, batch), _repeated(people, batch)
        seen = [[images.read_image(p, "source", images.ENOUGH)] for p in wearers]
        wearers_pose: Any = None if source_pose is None else read_poses(source_pose)

        def taken() -> dict[str, Any]:
            return _one_each(self.try_off(wearers, names, wearers_pose, **_shared(options)))

        return self._dressed(people, dict.fromkeys(names, seen), pose, face, keep, options, taken)

    def turntable(
        self,
        portrait: Picture | None = None,
        garments: Mapping[str, Worn] | None = None,
        pose: BodyParameters | str | os.PathLike[str] | None = None,
        face: Picture | None = None,
        views: int = 8,
        keep: Literal["auto", "others"] | None = "others",
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
            keep: "others" and None as in :meth:`try_on`; "auto" is "others". All pictures are new: "photo" is refused.
            generator: seeds the noise, which all views share.
            options: of the general call.

        Raises:
            ValueError: several people, a photo to be kept, or no pose that can be turned.
        """
        if isinstance(views, bool) or not isinstance(views, Integral) or views < 1:
            raise ValueError(f"views is {views!r}; give a whole number, 1 or more")
        if keep not in ("auto", "others", None):
            raise ValueError(f"a turntable makes new pictures: keep={keep!r} must be 'others', or None")
        clothes = {Category(c): g for c, g in worn_garments(garments).items() if g is not None}
        worn: dict[str, Any] = {c.value: g for c, g in dressed(clothes, join=self.config.join).items()}
        if any(len(images.as_list(p)) > 1 for p in (portrait, face, *worn.values())):
            raise ValueError("a turntable shows one person: give one picture of each, and call again for the next")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ValueError("a turntable takes one generator: all views share their noise")
        if isinstance(pose, str | os.PathLike) and str(pose).lower().endswith(".npz"):
            pose = BodyParameters.load(Path(pose))
        photos = images.as_list(portrait)
        if not isinstance(pose, BodyParameters) and (pose is not None or not photos):
            raise ValueError("a turntable needs body parameters to turn: give pose=BodyParameters.load('pose.npz')")
        left = self._left_open(worn) if photos and keep is not None else []
        given: dict[str, Any] = {"pose": None if pose is None else [pose], "face": face}
        given |= self._from_photos(photos, worn, left, given, options, _WHAT | {"pose": "BodyParameters"})
        if left:
            taken = self.try_off(portrait, left, **_shared(options | {"generator": generator}))
            worn |= _one_each(taken)
        poses = [turned(given["pose"][0], 360.0 * i / views) for i in range(views)]
        seed = int(
            torch.randint(2**62, (1,), generator=generator, device=None if generator is None else generator.device)
        )
        device = "cpu" if generator is None else generator.device
        alike = [torch.Generator(device=device).manual_seed(seed) for _ in poses]  # all noise, shared by all views
        return self(targets=["person"], garments=worn, generator=alike, **options | given | {"pose": poses})

    def _dressed(
        self,
        portrait: Pictures | None,
        worn: Mapping[str, Any],
        pose: Any,
        face: Pictures | None,
        keep: Any,
        options: dict[str, Any],
        taken: Callable[[], dict[str, Any]] | None = None,
    ) -> OMFAPipelineOutput:
        """A try-on; ``taken`` makes the garments that other pictures stand in for, once all else is known."""
        if keep not in ("auto", "photo", "others", None):
            raise ValueError(f"keep={keep!r} must be 'auto', 'photo', 'others' or None")
        worn = {c: g for c, g in worn.items() if g is not None}
        head = face is not None or options.get("face_pose") is not None
        if keep == "auto":
            own = portrait is not None and pose is None and not head
            keep = "photo" if self.config.portraits and own and worn else "others"
        if keep == "photo" and not self.config.portraits:
            raise ValueError("this model makes new pictures: keep='others', or a model that has learned portraits")
        if keep == "photo" and (portrait is None or not worn):
            raise ValueError("keep='photo' needs the portrait to change and a garment to put on")
        if keep == "photo" and head:
            raise ValueError("a photo that is kept keeps its face: leave out face=, or keep='others' for a new head")
        photos = _repeated(images.as_list(portrait), _seeds(options))
        if portrait is not None and not photos:
            raise ValueError("an empty list for portrait; give a picture, or leave it out")
        given: dict[str, Any] = {"pose": None if pose is None else _repeated(read_poses(pose), _seeds(options))}
        given |= {"portrait": photos} if keep == "photo" else {"face": face}
        left = self._left_open(worn) if photos and keep == "others" else []
        what = _WHAT | ({"pose": f"the photo's own, {_WHAT['pose']}"} if keep == "photo" else {})
        given |= self._from_photos(photos, worn, left, given, options, what, later=taken is not None)
        worn |= {} if taken is None else taken()
        if left:
            worn |= _one_each(self.try_off(photos, left, **_shared(options)))
        return self(targets=["person"], garments=worn, **options | given)

    def _from_photos(
        self,
        photos: list[Any],
        worn: Mapping[str, Any],
        left: Sequence[str],
        given: Mapping[str, Any],
        options: Mapping[str, Any],
        what: Mapping[str, str],
        later: bool = False,
    ) -> dict[str, Any]:
        """What is estimated of a person's photos because it is not given.

        Before any long work, this or a try-off (``left``, ``later``), whatever the call would refuse is refused: it is
        asked with the photos in the place of all that is not there yet.
        """
        missing = {name: what[name] for name in ("pose", "face") if photos and given.get(name, photos) is None}
        if missing or left or later:
            seen = [images.read_image(p, "portrait", images.ENOUGH) for p in photos]
            asked = {**given, "pose": seen if given["pose"] is None else [p and seen[0] for p in given["pose"]]}
            asked |= {"portrait": seen} if "portrait" in given else {}
            garments = {**worn, **{c: [[p] for p in seen] for c in left}}
            self._asked(["person"], garments=garments, **_early(options) | asked)
        if not missing:
            return {}
        looks = self._looks(photos, missing)
        found: dict[str, Any] = {"pose": [look.params for look in looks]} if "pose" in missing else {}
        heads = [look.face for look in looks if look.face is not None]
        if "face" in missing and len(heads) == len(looks):
            stands = [look.face_params for look in looks if look.face_params is not None]
            found |= {"face": heads} | ({"face_pose": stands} if len(stands) == len(looks) else {})
        outlines = [look.outline for look in looks if look.outline is not None]
        if "portrait" in given and options.get("portrait_mask") is None and len(outlines) == len(looks):
            found["portrait_mask"] = outlines
        return found

    def _asked(
        self,
        targets: Any,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Any = None,
        eta: float = 0.0,
        output_type: str = "pil",
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **given: Any,
    ) -> tuple[Request, int, float]:
        """The general call checked, its pictures read; its steps and guidance. Arguments and errors are that call's."""
        check_scheduler(self.scheduler)
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f"output_type {output_type!r} must be 'pil', 'np', 'pt' or 'latent'")
        if set(callback_on_step_end_tensor_inputs) - {"latents"}:
            raise ValueError("callback_on_step_end_tensor_inputs may only hold 'latents'")
        steps = self.config.default_steps if num_inference_steps is None else num_inference_steps
        scale = self.config.default_guidance if guidance_scale is None else guidance_scale
        check_sampler(steps, scale, eta, generator)
        if self.config.distilled:
            check_call(self.scheduler, self.config.default_steps, steps, scale)
        if given.get("portrait") is not None and not self.config.portraits:
            raise ValueError("this model has not learned to change photos: give face= and pose=, no portrait=")
        several = isinstance(generator, list | tuple)
        seeds = len(generator) if several else 1
        how = {"style": self.config.pose_style, "join": self.config.join, "accessories": self.config.accessories}
        request = read_request(self.canvas, targets, **given, **how, seeds=seeds)
        if several and seeds != request.batch:
            raise ValueError(f"{seeds} generators in a batch of {request.batch}; give one, or one per picture")
        return request, steps, scale

    def _bodies(self, person: Pictures) -> list[BodyParameters | None] | None:
        """The bodies in photos, None where one is not found, with a warning; without an estimator, said once, none."""
        photos, found = images.as_list(person), list[BodyParameters | None]()
        for i, photo in enumerate(photos):
            try:
                same = next((k for k, p in enumerate(photos[:i]) if p is photo), None)  # one photo, many pictures
                found.append(self._estimate(photo, {"pose": _WHAT["pose"]}).params if same is None else found[same])
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

    def _looks(self, photos: list[Any], missing: Mapping[str, str]) -> list[Estimate]:
        """An estimate each; the same photo is looked at once."""
        once = {key: self._estimate(p, missing) for key, p in {id(p): p for p in photos}.items()}
        return [once[id(p)] for p in photos]

    def _estimate(self, portrait: Picture, missing: Mapping[str, str]) -> Estimate:
        """What an estimator says of a photo. ``missing``: what it is asked for, and what could be given instead."""
        if self.pose_estimator is None:
            give = " and ".join(f"{name}= ({what})" for name, what in missing.items())
            raise NoEstimator(
                f"{' and '.join(missing)} {'is' if len(missing) < 2 else 'are'} missing and this pipeline has no pose "
                f"estimator: pass {give}, or set pipe.pose_estimator (the command line does)"
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


def _categories(categories: Any) -> list[str]:
    """What to take off, as a list; ValueError where it is no category."""
    one = isinstance(categories, str) or not isinstance(categories, Collection)
    names = [categories] if one else list(categories)
    if not names or any(not isinstance(c, str) or c not in tuple(Category) for c in names):
        raise ValueError(f"categories {names} must be some of {', '.join(Category)}")
    return [str(c) for c in names]


def _seeds(options: Mapping[str, Any]) -> int:
    """How many generators a call has."""
    generator = options.get("generator")
    return len(generator) if isinstance(generator, list | tuple) else 1


def _repeated(several: list[Any], batch: int) -> list[Any]:
    """One thing as a batch of the same; several stay as they are."""
    return several * batch if len(several) == 1 else several


def _one_each(taken: OMFAPipelineOutput) -> dict[str, Any]:
    """What was taken off, to be put on: one garment of a category for each picture of the batch."""
    return {category: [[p] for p in pictures] for category, pictures in taken.garments.items()}


def _shared(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a try-on that its own try-off takes over."""
    names = ("num_inference_steps", "guidance_scale", "generator", "eta", "callback_on_step_end")
    return {k: v for k, v in options.items() if k in names}


def _early(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a call is checked for."""
    return {k: v for k, v in options.items() if k not in _LATER}
