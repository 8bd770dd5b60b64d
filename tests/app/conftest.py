"""A page that is served, with a tiny model behind it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from omfa.app.studio import Studio
from omfa.bodies.body import load_body
from omfa.bodies.named_poses import NAMED_POSES
from omfa.bodies.placing import place
from omfa.tasks import Estimate
from tests.conftest import make_compact


def standing(photo: Image.Image) -> Estimate:
    """An estimator that finds the same body in every photo but a grey one."""
    if np.asarray(photo).std() < 1:
        raise ValueError("nobody is seen")
    return Estimate(place(load_body(), NAMED_POSES["standing"], image_size=(photo.height, photo.width)), None)


@pytest.fixture(scope="module")
def studio() -> Studio:
    pipe = make_compact()
    pipe.pose_estimator = standing
    return Studio(pipe)


@pytest.fixture(scope="module")
def url(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page that is served."""
    pytest.importorskip("gradio", reason="the page needs gradio, which make setup installs")
    folder = tmp_path_factory.mktemp("page")
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    from omfa.app.page import opened

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = opened(studio, folder, "127.0.0.1", port)
    yield f"http://127.0.0.1:{port}"
    page.close(verbose=False)
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
