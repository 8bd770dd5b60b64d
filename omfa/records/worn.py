"""Which of a record's garments a model can be given."""

from __future__ import annotations

from collections.abc import Collection

from omfa.components import CLOTHES, Category
from omfa.records.prepared import GarmentRef, Record, garment_roles


def wearable(record: Record, join: str = "canvas", accessories: Collection[str] = ()) -> dict[str, GarmentRef]:
    """Role (:func:`omfa.records.prepared.garment_roles`) to garment, from inside to outside.

    Args:
        record: any.
        join: of the model. On a canvas the outermost of each of the clothes, a dress alone; in rows all clothes.
        accessories: what it has learned beside clothes, in rows.
    """
    roles = garment_roles(record)
    if join == "rows":
        return {role: g for role, g in roles.items() if g.category in (*CLOTHES, *accessories)}
    alone = (Category.DRESS,) if Category.DRESS in roles else CLOTHES
    return {role: g for role, g in roles.items() if role in alone}


def clothes(record: Record) -> tuple[GarmentRef, ...]:
    """What any model can be given: the outermost of each of the clothes, a dress alone; no accessories."""
    return tuple(wearable(record).values())
