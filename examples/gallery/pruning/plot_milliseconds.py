"""
Milliseconds, and ONNX Runtime
==============================

Do fewer multiply-adds take less time, and does the small network run elsewhere? The whole network
and two of half its multiply-adds are timed in turn, in PyTorch and, exported, in ONNX Runtime, with
64 images at a time on the machine that built this page. A run-time that works on channels in blocks
wants multiples of eight filters. Bars are medians, thin lines reach from quartile to quartile.
"""

import tempfile
from functools import partial
from pathlib import Path
from timeit import timeit

import matplotlib.pyplot as plt
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

import epruner
from epruner import Constraints
from examples.digits import SHAPE, accuracy, split, trained_network

model = trained_network()  # a residual network that reads scikit-learn's digits
images = split()[0]
batch = images[:64]

networks: dict[str, nn.Module] = {"whole": model}
for name, constraints in (
    ("half the multiply-adds", Constraints()),
    ("half, in multiples of 8", Constraints(round_to=8)),
):
    result = epruner.prune(model, SHAPE, macs=0.5, calibrate=images[:300], constraints=constraints)
    networks[name] = result.model

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = torch.get_num_threads()  # as many as PyTorch
sessions = []
with tempfile.TemporaryDirectory() as folder:
    for network in networks.values():
        path = Path(folder) / "network.onnx"
        epruner.export_onnx(network, batch, path, any_batch=False)
        sessions.append(onnxruntime.InferenceSession(path.read_bytes(), options))
        path.unlink()


def milliseconds(rounds: int = 60) -> NDArray[np.float64]:
    """(run-times, networks, rounds): all in every round, so that a busy moment meets them alike."""
    taken = np.empty((2, len(networks), rounds))
    for count in range(rounds):
        for place, (network, session) in enumerate(zip(networks.values(), sessions, strict=True)):
            feed = {session.get_inputs()[0].name: batch.numpy()}
            with torch.inference_mode():
                taken[0, place, count] = timeit(partial(network, batch), number=1)
            taken[1, place, count] = timeit(partial(session.run, None, feed), number=1)
    return 1000 * taken


low, middle, high = np.quantile(milliseconds(), [0.25, 0.5, 0.75], axis=2)
rows = np.arange(len(networks))
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for number, (name, colour) in enumerate((("PyTorch", "#0072B2"), ("ONNX Runtime", "#E69F00"))):
    spread = (middle - low)[number], (high - middle)[number]
    places = rows + 0.4 * number - 0.2
    bars = axes.barh(places, middle[number], height=0.36, xerr=spread, color=colour, label=name)
    axes.bar_label(bars, fmt="%.2f", padding=4)
axes.set_yticks(rows, networks)
axes.invert_yaxis()
axes.set(xlabel=f"milliseconds for a batch of 64, threads: {torch.get_num_threads()}")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %%
# The same answers
# ----------------
# What ONNX Runtime computes is what the pruned network computes, to rounding.

for name, network, session in zip(networks, networks.values(), sessions, strict=True):
    (scores,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    with torch.inference_mode():
        apart = float((torch.from_numpy(scores) - network(batch)).abs().max())
    print(f"{name:<25} accuracy {accuracy(network):.1%}, largest difference {apart:.1e}")

# %%
# A share of the time
# -------------------
# Multiply-adds and milliseconds are not the same. ``latency=0.7`` asks for 70 % of the time that
# the whole network takes here, for this batch: layers are timed at several widths, and what comes
# out is timed against the whole network.

result = epruner.prune(model, batch, latency=0.7, calibrate=images[:300])
print(result.report.totals().to_text())
print(result.report.timing)
print(f"accuracy {accuracy(result.model):.1%}")
