"""The published runs: which layers, and with which beta.

From the tables of Lin et al., "Network Pruning using Adaptive Exemplar Filters", arXiv 2101.07985.
The rows do not follow from one rule: later blocks use another beta.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

# Usual names: torchvision's layer3.4.conv2, pytorchcv's stage3.unit5.body.conv2.conv.
_BLOCK = r"(?P<block>.*(?:layer\d+\.\d+|stage\d+\.unit\d+))\.(?:body\.)?conv(?P<conv>\d)(?:\.conv)?"


@dataclass(frozen=True)
class Recipe:
    """Layers and beta schedule of one published row.

    Parameters
    ----------
    name : str
        As for `published`.
    beta : float
        For blocks (or convolutions, VGG) before `later_from`.
    kind : {"residual", "vgg", "inception"}
        By which names its layers are found.
    convs : tuple of int
        Which convolutions of a residual block are pruned, from 1.
    later_from : int or None
        Block (or convolution) from 0 on from which `later_beta` holds.
    later_beta : float or None
        None is `beta` throughout.
    later_convs : tuple of int or None
        The convolutions that `later_beta` is for; None is all of `convs`.
    blocks : int
        Residual blocks the network must have, to catch a recipe for another depth; 0 is any.

    Examples
    --------
    >>> from epruner import recipes
    >>> recipe = recipes.published("resnet50")
    >>> recipe.beta, recipe.later_beta, recipe.convs
    (0.73, 0.85, (1, 2))
    """

    name: str
    beta: float
    kind: str
    convs: tuple[int, ...] = ()
    later_from: int | None = None
    later_beta: float | None = None
    later_convs: tuple[int, ...] | None = None
    blocks: int = 0

    def betas(self, model: nn.Module) -> dict[str, float]:
        """Beta of every layer that the recipe prunes, by its name in this model.

        Parameters
        ----------
        model : torch.nn.Module
            Its modules named as usual: ``layer1.0.conv1``, ``stage1.unit1.body.conv1``.

        Returns
        -------
        dict of str to float
            By module name, in the order of the network.

        Raises
        ------
        ValueError
            The modules of the model are not named in a usual way, or it is another network.

        Examples
        --------
        >>> from epruner import recipes
        >>> from torch import nn
        >>> vgg = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(13)))
        >>> betas = recipes.published("vgg16").betas(vgg)
        >>> len(betas), betas["0"], betas["12"]
        (13, 0.73, 0.92)
        """
        convs = [name for name, m in model.named_modules() if isinstance(m, _ConvNd)]
        found = {"residual": self._residual, "vgg": self._vgg, "inception": self._inception}[
            self.kind
        ](convs)
        if not found:
            raise ValueError(
                f"recipe {self.name!r} finds none of its layers in {type(model).__name__}; it "
                "knows the usual module names (layer1.0.conv1, stage1.unit1.body.conv1). Give "
                "layers= and beta= instead"
            )
        return found

    def _residual(self, convs: list[str]) -> dict[str, float]:
        matches = [(name, m) for name in convs if (m := re.fullmatch(_BLOCK, name))]
        order = list(dict.fromkeys(m["block"] for _, m in matches))
        if self.blocks and order and len(order) != self.blocks:
            raise ValueError(
                f"recipe {self.name!r} is for {self.blocks} residual blocks, this network has "
                f"{len(order)}"
            )
        return {
            name: self._beta_at(order.index(m["block"]), int(m["conv"]))
            for name, m in matches
            if int(m["conv"]) in self.convs
        }

    def _vgg(self, convs: list[str]) -> dict[str, float]:
        if len(convs) != 13:
            return {}
        return {name: self._beta_at(place, 0) for place, name in enumerate(convs)}

    def _inception(self, convs: list[str]) -> dict[str, float]:
        # the 3x3 branch's reduction and the first two of the three convolutions of the 5x5 branch
        # (b2/b3 in the usual CIFAR definition with 1x1, 3x3, 3x3; branch2/branch3 elsewhere)
        branches: dict[str, list[str]] = {}
        for name in convs:
            if match := re.match(r"(.*\.(?:b|branch)[23])(?:\.|x)", name):
                branches.setdefault(match[1], []).append(name)
        return {name: self.beta for inside in branches.values() for name in inside[:-1]}

    def _beta_at(self, place: int, conv: int) -> float:
        late = self.later_from is not None and place >= self.later_from
        if late and self.later_beta and (not self.later_convs or conv in self.later_convs):
            return self.later_beta
        return self.beta


PUBLISHED = {
    recipe.name: recipe
    for recipe in (
        Recipe("vgg16", 0.73, "vgg", later_from=8, later_beta=0.92),
        Recipe("googlenet", 0.65, "inception"),
        Recipe("resnet56", 0.76, "residual", convs=(1,), blocks=27),
        Recipe("resnet110", 0.60, "residual", convs=(1,), blocks=54),
        Recipe("resnet18", 0.73, "residual", (1,), 6, 0.86, blocks=8),
        Recipe("resnet34", 0.75, "residual", (1,), 14, 0.92, blocks=16),
        Recipe("resnet50", 0.73, "residual", (1, 2), 13, 0.85, (2,), blocks=16),
        Recipe("resnet101", 0.67, "residual", (1, 2), 28, 0.92, blocks=33),
        Recipe("resnet152", 0.63, "residual", (1, 2), 45, 0.92, blocks=50),
    )
}


def published(name: str) -> Recipe:
    """The recipe of a published row.

    Parameters
    ----------
    name : str
        vgg16, googlenet, resnet56, resnet110 (CIFAR-10), resnet18, resnet34, resnet50, resnet101
        or resnet152 (ImageNet).

    Returns
    -------
    Recipe
        For ``prune(model, inputs, recipe=...)``.

    Raises
    ------
    ValueError
        There is none of that name; the message lists those that there are.

    Examples
    --------
    >>> from epruner import recipes
    >>> recipes.published("resnet56").beta
    0.76
    """
    if name not in PUBLISHED:
        raise ValueError(f"no published recipe {name!r}; there are {', '.join(PUBLISHED)}")
    return PUBLISHED[name]
