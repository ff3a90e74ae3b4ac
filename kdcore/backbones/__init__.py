"""Networks, usable as teacher or student.

Each file that defines `NETWORKS` is a family; `names` lists them all. Two kinds of name are built
on demand: `resnet50+fpn`, a feature pyramid over another network (`fpn`), and
`torchvision/resnet50` or `timm/resnet50`, a network of these libraries (`libraries`).
"""
