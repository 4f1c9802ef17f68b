"""
Which method keeps most?
========================

Which filters go, and how many of each layer: four methods on one network at three budgets, each
followed by the same repair from noise. The default, which chooses by what the layers after a filter
lose without it, keeps most where little is left.
"""

import matplotlib.pyplot as plt
import numpy as np

import epruner
from examples.digits import SHAPE, accuracy, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
net = epruner.analyse(model, SHAPE)  # once for all prunings

shares = [0.6, 0.4, 0.25]
methods = {
    "l1": "largest weights (l1)",
    "fpgm": "far from the median (fpgm)",
    "exemplar": "exemplars of what readers lose",
    "auto": "the default",
}
right = {
    method: [
        100 * accuracy(epruner.prune(model, net, macs=share, method=method).model)
        for share in shares
    ]
    for method in methods
}
print(right)
