"""LaDI-VTON (Morelli et al. 2023, arXiv 2305.13501): try-on by repainting a masked photo, written from the paper."""
