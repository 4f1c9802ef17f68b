"""
A transformer loses heads and hidden units
==========================================

Of attention what goes are heads, of the layers between them hidden units. A small vision
transformer reads digits as 4 by 4 patches; each square shows which patches a head looks at (the
brighter, the more), and the heads that go when half the multiply-adds must are crossed out.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import epruner
from examples.digits import SHAPE, accuracy, split, train


class VisionTransformer(nn.Module):
    """(n, 1, 8, 8) -> (n, 10)."""

    def __init__(self, width: int = 48, heads: int = 8, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.places = nn.Parameter(torch.randn(16, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, 10)

    def tokens(self, x: Tensor) -> Tensor:
        """(n, 1, 8, 8) -> (n, 16, width)."""
        tokens: Tensor = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.encoder(self.tokens(x)).mean(1))
        return scores


@torch.no_grad()
def attention(model: VisionTransformer, images: Tensor) -> list[Tensor]:
    """Of each layer (heads, 4, 4): how much the patches are looked at, the mean over images."""
    found = []
    x = model.tokens(images)
    for layer in model.encoder.layers:
        normed = layer.norm1(x)
        _, weights = layer.self_attn(normed, normed, normed, average_attn_weights=False)
        found.append(weights.mean((0, 2)).unflatten(1, (4, 4)))  # and from all patches
        x = layer(x)
    return found


torch.manual_seed(0)
model = VisionTransformer()
train(model, epochs=14)
images = split()[0][:300]  # without labels
net = epruner.analyse(model, SHAPE)
result = epruner.prune(model, net, macs=0.5, calibrate=images)

figure, axes = plt.subplots(2, 8, figsize=(8, 2.7), layout="constrained")
for number, heads in enumerate(attention(model, images)):
    stay = result.kept[f"encoder.layers.{number}.self_attn.q_proj"]
    for head, cell in enumerate(axes[number]):
        cell.imshow(heads[head].numpy(), cmap="cividis", vmin=0)  # each head to its own scale
        cell.set(xticks=[], yticks=[])
        if head not in stay:
            ends = np.array([-0.5, 3.5])
            cell.plot(ends, ends, ends, -ends + 3, color="#D55E00", linewidth=3)
    axes[number, 0].set_ylabel(f"layer {number + 1}")
figure.suptitle(
    f"half the multiply-adds: accuracy {accuracy(model):.1%} before, "
    f"{accuracy(result.model):.1%} after",
    fontsize=11,
)
plt.show()

# %%
# Heads and hidden units
# ----------------------
# Queries, keys and values of a head go together, so the report has them with the same numbers;
# ``num_heads`` of the module changes with its weights. Streams that a LayerNorm reads are left
# alone: removing some of their channels is an approximation, and asked for with ``scope="all"``.

for layer in result.report.layers:
    print(f"{layer.name:<34} {layer.after:>2} of {layer.before}")
print(result.model.get_submodule("encoder.layers.0.self_attn"))

# %%
# Without one image
# -----------------
# A LayerNorm normalises each input by itself, so noise tells something of such a network, too.

shares = [0.8, 0.65, 0.5, 0.35, 0.25]
figure, axes = plt.subplots(figsize=(7, 3.8), layout="constrained")
for label, colour, marker, asked in (
    ("300 images, without labels", "#009E73", "D", {"calibrate": images}),
    ("noise (default)", "#0072B2", "o", {}),
    ("sliced, L1", "#595959", "v", {"method": "l1", "repair": "none"}),
):
    pruned = [epruner.prune(model, net, macs=share, **asked).model for share in shares]
    right = [100 * accuracy(network) for network in (model, *pruned)]
    axes.plot([100, *(100 * s for s in shares)], right, color=colour, marker=marker, label=label)
axes.set(
    xlabel="multiply-adds left (% of the whole network's)",
    ylabel="accuracy on images it has not seen (%)",
    ylim=(0, 105),
)
axes.grid(color="#DDDDDD", linewidth=0.6)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()
