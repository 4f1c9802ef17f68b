"""Pruning of a small convolutional network, by weights and from inputs."""

from __future__ import annotations


class Prune:
    """A network of three convolutions at half of its multiply-adds."""

    params = ("l1", "exemplar", "auto")
    param_names = ("method",)
    timeout = 300

    def setup(self, method: str) -> None:
        try:
            import torch
            from torch import nn
        except ImportError as absent:  # asv skips what raises this
            raise NotImplementedError from absent
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip
        self.images = torch.randn(64, 3, 32, 32)
        self.model(self.images)  # BatchNorm remembers, as after training
        self.model.eval()

    def time_prune(self, method: str) -> None:
        from epruner import prune

        prune(self.model, (1, 3, 32, 32), macs=0.5, method=method, calibrate=self.images)

    def peakmem_prune(self, method: str) -> None:
        self.time_prune(method)
