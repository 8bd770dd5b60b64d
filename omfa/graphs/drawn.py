"""What bodies show, drawn ahead for a model that runs without torch: drafts, surface maps, where a photo may change.

python -m omfa.graphs.drawn photo.jpg garment.jpg --pose body.npz --category upper --model compact --out drawn.npz
python -m omfa.device photo.jpg garment.jpg --drawn drawn.npz --category upper --model FOLDER
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from omfa.bodies.body import load_body
from omfa.bodies.parameters import BodyParameters
from omfa.canvas import PERSON
from omfa.commands import Parser, size_of
from omfa.components import CLOTHES
from omfa.drafting import draw, known_pictures, layers_of
from omfa.files import check_writable, whole
from omfa.graphs.rows_model import LARGE
from omfa.images import Picture, fit_picture
from omfa.pipeline import OMFAPipeline
from omfa.request import read_request


@torch.no_grad()
def drawn(
    pipe: OMFAPipeline,
    photo: Picture,
    garment: Picture,
    category: str,
    pose: BodyParameters,
    large: Sequence[int] = LARGE,
) -> dict[str, np.ndarray]:
    """For a garment put on in a photo; keys are as :func:`omfa.device.try_on` takes them.

    Args:
        pipe: the model that is exported.
        photo, garment: pictures.
        category: of the garment.
        pose: the body in the photo.
        large: (H, W) that the exported composer puts together at.

    Returns:
        (3, H, W) and (1, H, W) in [-1, 1] and [0, 1]; without drafts where the bodies make none.
    """
    style, body = pipe.config.pose_style, load_body()
    request = read_request(
        *(pipe.canvas, [PERSON], None, {category: garment}, None, pose, None, photo, None, None, style),
        join=pipe.config.join,
    )
    height, width = pipe.config.person_size
    small, bigger = draw(request, (height, width), body), draw(request, (large[0], large[1]), body)
    posed = request.pose[0]
    assert posed is not None  # a person is made: nothing but a photo may lack its body
    made: dict[str, Any] = {"pose": fit_picture(posed, (height, width))[0]}
    if style == "surface":
        (cloth,) = small.maps(body).values()
        made |= {} if cloth[0] is None else {"garment_map": cloth[0]}
    if pipe.config.draft == "surface":
        draft = known_pictures(request, PERSON, small, (height, width))[0]
        made |= {} if draft is None else {"draft": draft}
    layers = layers_of(request, PERSON, 0, bigger, (large[0], large[1]), body)
    if layers is not None:
        made |= {f"large_{name}": x for name, x in layers._asdict().items() if name != "photo"}
    return {name: x.float().numpy() for name, x in made.items()}


def main(args: Sequence[str] | None = None) -> int:
    """The command; 0, or 2 where the call or its input was wrong."""
    parser = Parser(prog="python -m omfa.graphs.drawn", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photo", help="of a dressed person")
    parser.add_argument("garment", help="its shop picture")
    parser.add_argument("--pose", required=True, type=Path, help="the body in the photo (.npz)")
    parser.add_argument("--category", default="upper", choices=[c.value for c in CLOTHES])
    parser.add_argument("--model", default="compact", help="the model that was exported")
    parser.add_argument("--size", type=size_of, default=LARGE, help="as in omfa.export")
    parser.add_argument("--out", required=True, type=Path, help="file to write (.npz)")
    call = parser.parse_args(args)
    try:
        check_writable(call.out.parent)
        pipe, pose = OMFAPipeline.from_pretrained(call.model), BodyParameters.load(call.pose)
        made = drawn(pipe, call.photo, call.garment, call.category, pose, call.size)
        with whole(call.out) as part, part.open("wb") as file:
            np.savez_compressed(file, **made)  # type: ignore[arg-type]
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(call.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
