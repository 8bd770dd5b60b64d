"""TryOffDiff v1, v2 and MGT (arXiv 2411.18350): try-off by Stable Diffusion 1.4 that sees the photo through SigLIP."""
