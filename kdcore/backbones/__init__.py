"""The networks that can teach or learn.

Each file that defines `NETWORKS` is a family of the catalogue. Two kinds of name stand for more:
`resnet50+fpn` for a pyramid over another network (see `fpn`), `torchvision/resnet50` and
`timm/resnet50` for the networks of these libraries (see `libraries`).
"""
