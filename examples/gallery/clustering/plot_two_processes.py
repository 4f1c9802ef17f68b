"""
Two processes share the rows
============================

What if one machine cannot hold the points? Two processes, started by torchrun, cluster the patches
of a photograph: one holds those above the line, the other those below. Painted with the exemplar of
each patch there is no seam, since clusters reach over the line: labels are those of one process, to
the bit.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

SIDE = 8  # pixels of a patch
photo = load_sample_image("china.jpg")
height, width = photo.shape[0] // SIDE // 2 * 2, photo.shape[1] // SIDE  # half to each rank
photo = photo[: height * SIDE, : width * SIDE]
patches = photo.reshape(height, SIDE, width, SIDE, 3).swapaxes(1, 2)
points = patches.reshape(height * width, -1).astype(np.float32)


def clusters_of(launcher: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and exemplars that ``epruner cluster`` finds; each rank reads its rows of the file."""
    command = [sys.executable, *launcher, "-m", "epruner", "cluster", "points.npy"]
    command += ["--damping", "0.9", "--out", "labels.npy", "--exemplars", "exemplars.npy"]
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "points.npy", points)
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return np.load(Path(folder) / "labels.npy"), np.load(Path(folder) / "exemplars.npy")


labels, exemplars = clusters_of(["-m", "torch.distributed.run", "--nproc-per-node", "2"])

painted = patches.reshape(points.shape[0], SIDE, SIDE, 3)[exemplars[labels]]
painted = painted.reshape(height, width, SIDE, SIDE, 3).swapaxes(1, 2).reshape(photo.shape)
border = len(points) // 2  # rank 0 has the rows before it
figure, cells = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
for cell, image, title in (
    (cells[0], photo, f"{len(points):,} patches of {SIDE} by {SIDE} pixels"),
    (cells[1], painted, f"each painted with its exemplar, {len(exemplars)} in all"),
):
    cell.imshow(image)
    cell.axhline(SIDE * border / width, color="white", linewidth=2)
    cell.set(xticks=[], yticks=[])
    cell.set_title(title, fontsize=11)
for rank, place in enumerate((0.97, 0.03)):
    box = {"facecolor": "black", "alpha": 0.6, "edgecolor": "none"}
    style = {"color": "white", "va": "top" if rank == 0 else "bottom"}
    cells[0].text(0.02, place, f"rank {rank}", transform=cells[0].transAxes, bbox=box, **style)
plt.show()

# %%
# One process finds the same
# --------------------------

alone, same_exemplars = clusters_of([])
print(f"labels equal: {np.array_equal(labels, alone)}")
print(f"exemplars equal: {np.array_equal(exemplars, same_exemplars)}")

# %%
# Clusters reach over the border
# ------------------------------
# No process held all points: blocks of rows go round the ranks while similarities are evaluated,
# and in an iteration one number for each point is summed. Every cluster has one exemplar, whichever
# rank holds it.

sides = np.stack(
    [np.bincount(part, minlength=len(exemplars)) for part in np.split(labels, [border])]
)
across = (sides > 0).all(axis=0)
print(f"{across.sum()} of {len(exemplars)} clusters have patches on both ranks")

figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
order = np.argsort(-sides.sum(axis=0), kind="stable")
axes.bar(range(len(order)), sides[0, order], color="#0072B2", label="on rank 0")
axes.bar(
    range(len(order)), sides[1, order], bottom=sides[0, order], color="#E69F00", label="on rank 1"
)
axes.set(xlabel="cluster, the largest first", ylabel="patches", xlim=(-0.7, len(order) - 0.3))
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
