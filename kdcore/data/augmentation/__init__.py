"""Augmentation as a list of named steps, each a pure function of (seed, image, view, its place).

`steps` has their parameters, those of torchvision.transforms.v2, and the presets; `pipeline`
applies them to a batch; `colour`, `geometry` and `policies` have the operations, whose pixels are
those of `torchvision.transforms.v2.functional`; `mixing` joins two images.

An operation computes in whole numbers, in floating point that is exact for 8-bit pixels, or in one
rounded operation at a time, so that a view is the same in every batch and on every machine.
"""
