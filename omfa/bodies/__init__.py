"""A body and its pictures: parameters, the SMPL-X model, pose maps."""
