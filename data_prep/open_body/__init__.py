"""The open body: an SMPL-X body built from openly licensed MakeHuman data."""
