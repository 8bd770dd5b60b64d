"""Whether a fitted body may be believed. A wrong body does more harm than none: it dresses people wrongly.

The limits are far from what good fits reach: on 15 catalogue photos points were off by 1 to 2 % of the person, bones by
3 to 7 degrees (the worst limb by 20), and at least 94 % of the body lay on the person.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from data_prep.poses.fitting import Fit
from data_prep.poses.skeleton import Array

POINTS_OFF = 0.05  # of the person's height in the picture
BONES_OFF = 15.0  # degrees, in the mean
LIMB_OFF = 50.0  # degrees, the worst of the limbs that were well seen
INSIDE = 0.75  # of the body's pixels that lie on the person's


def measured(found: Fit, shown: Array) -> Fit:
    """The fit with one more number, if it brings an outline: ``inside``, the share of the body that lies on the person.

    Of a body that is nowhere in the picture that is 0, outline or not.

    Args:
        found: the fit.
        shown: (h, w) bool, the body in the picture, which may be smaller than the outline.
    """
    inside = 0.0
    if shown.any():
        if found.outline is None:
            return found
        outline = cv2.resize(found.outline.astype(np.uint8), shown.shape[::-1], interpolation=cv2.INTER_NEAREST)
        inside = float((outline[shown] > 0).mean())
    return replace(found, residuals=found.residuals | {"inside": round(inside, 4)})


def doubt(found: Fit) -> str:
    """Why a fit must not be believed; empty if it may. What its estimator does not measure is not held against it.

    Measured and not a number: that is within no limit.
    """
    told = found.residuals
    low, high = found.joints[:22].min(0), found.joints[:22].max(0)
    tall = float(np.max(high - low)) / found.params.image_size[0]
    reasons = []
    if not (off := told.get("reprojection", 0.0) / max(tall, 1e-6)) <= POINTS_OFF:
        reasons.append(f"its points are off by {off:.0%} of the person (at most {POINTS_OFF:.0%})")
    if not (off := told.get("bone_degrees", 0.0)) <= BONES_OFF:
        reasons.append(f"its bones point {off:.0f} degrees away from what was seen (at most {BONES_OFF:.0f})")
    if not (off := told.get("limb_degrees", 0.0)) <= LIMB_OFF:
        reasons.append(f"a limb points {off:.0f} degrees away from what was seen (at most {LIMB_OFF:.0f})")
    if not (inside := told.get("inside", 1.0)) >= INSIDE:
        reasons.append(f"only {inside:.0%} of the body lie on the person (at least {INSIDE:.0%})")
    return "the fitted body can't be right: " + "; ".join(reasons) if reasons else ""
