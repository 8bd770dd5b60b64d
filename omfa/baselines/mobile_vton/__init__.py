"""Mobile-VTON (arXiv 2603.00947): try-on by a network small enough for a phone, and the way it is distilled."""
