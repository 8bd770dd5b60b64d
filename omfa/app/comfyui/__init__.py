"""A pack of nodes for ComfyUI: put this folder (or a link to it) into ComfyUI's ``custom_nodes``."""

from __future__ import annotations

from typing import Any


async def comfy_entrypoint() -> Any:
    """What ComfyUI asks a pack for."""
    from omfa.app.comfyui.nodes import Pack  # here, for nothing else of the pack needs ComfyUI

    return Pack()
