"""Augmentation: parameters sampled once as data, then applied to a whole batch on the training device.

``settings`` says how often and how far; ``geometry`` moves voxels in one resampling; ``intensity`` changes their
values; ``alignment`` relates views to their source and to each other. Settings need no torch, so nothing is
imported here.
"""
