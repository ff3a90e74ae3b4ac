"""MNIST: 70,000 handwritten digits, 28x28, grey.

Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Gradient-based learning applied to document
recognition, Proceedings of the IEEE, 1998.
"""

from kdcore.data.idx import idx_source

SOURCE = idx_source("MNIST", "MNIST", tuple("0123456789"), flip=False)
