"""The words of the method: what lies on the canvas, and which part of it a task generates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Component(StrEnum):
    """What a slot of the canvas, or a row, holds. PORTRAIT, the photo to be changed, is always given, in rows alone."""

    PERSON = "person"
    GARMENT = "garment"
    FACE = "face"
    PORTRAIT = "portrait"


class Category(StrEnum):
    """What kind of garment a picture shows."""

    UPPER = "upper"
    LOWER = "lower"
    DRESS = "dress"
    SHOES = "shoes"
    BAG = "bag"
    HAT = "hat"


CLOTHES = (Category.UPPER, Category.LOWER, Category.DRESS)  # what nobody is without, and what every model knows
ACCESSORIES = (Category.SHOES, Category.BAG, Category.HAT)  # what comes beside them, where a model has learned it


def as_clothes(word: str) -> Category:
    """The category of that name, for models that know clothes alone; ValueError for any other word."""
    if word not in CLOTHES:
        raise ValueError(f"category {word!r} must be one of {', '.join(CLOTHES)}")
    return Category(word)


def clash(worn: Sequence[Category]) -> str | None:
    """Why nobody can wear these at once, and what would work; None: they can."""
    if worn.count(Category.DRESS) > 1:
        return "two dresses can't be worn at once: give one, and what goes over it as upper"
    if Category.DRESS in worn and Category.LOWER in worn:
        return "a dress takes the place of a lower garment: give one of the two, and what goes over a dress as upper"
    return None


class State(StrEnum):
    """The part a slot plays in one example (section 3 of the paper's partial diffusion).

    ``TARGET`` is noised and generated, ``GIVEN`` stays clean, ``ABSENT`` is empty and outside the loss.
    """

    TARGET = "target"
    GIVEN = "given"
    ABSENT = "absent"


class TaskKind(StrEnum):
    """The three families of tasks, as the prompt and the sampling weights name them."""

    TRY_ON = "try_on"
    TRY_OFF = "try_off"
    JOINT = "joint"


@dataclass(frozen=True)
class Task:
    """Which components are generated; whatever else is there is given.

    Args:
        targets: components to generate; any non-empty subset of PERSON and GARMENT.

    Raises:
        ValueError: no target, or FACE or PORTRAIT as a target (they are only ever given).
    """

    targets: frozenset[Component]

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("a task needs at least one target component: Component.PERSON and/or Component.GARMENT")
        if Component.FACE in self.targets:
            raise ValueError("FACE is never a target: it is given (a head crop) or absent")
        if Component.PORTRAIT in self.targets:
            raise ValueError("PORTRAIT is never a target: PERSON is the same photo with other clothes")

    @property
    def kind(self) -> TaskKind:
        """The family the task belongs to."""
        if self.targets == {Component.PERSON}:
            return TaskKind.TRY_ON
        if self.targets == {Component.GARMENT}:
            return TaskKind.TRY_OFF
        return TaskKind.JOINT

    def states(self, present: Mapping[str, Component]) -> dict[str, State]:
        """State of each present slot: target if its component is one, given otherwise.

        Args:
            present: slot name to component, for every slot that has content in this example.

        Returns:
            Slot name to TARGET or GIVEN. Slots not listed are ABSENT.
        """
        return {slot: State.TARGET if c in self.targets else State.GIVEN for slot, c in present.items()}


TRY_ON = Task(frozenset({Component.PERSON}))
TRY_OFF = Task(frozenset({Component.GARMENT}))
JOINT = Task(frozenset({Component.PERSON, Component.GARMENT}))
