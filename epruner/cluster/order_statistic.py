"""An order statistic of all pairs' similarities, which pass by once: a window where it must lie."""

from dataclasses import dataclass

import numpy as np

from epruner.cluster.types import Floats

# Of so many similarities one is drawn where a sample tells about where their median lies.
_SAMPLED, _LEAST_SAMPLE, _MOST_SAMPLED = 1 << 13, 1 << 16, 1 << 20
_MOST_KEPT = 1 << 24  # values in a window around it; more are counted in bins


@dataclass(frozen=True)
class OrderStatistic:
    """One of the similarities of all pairs of different points.

    Parameters
    ----------
    n : int
        Points.
    position : float
        Among ordered pairs in ascending order of similarity, from 0; a fraction interpolates.
    """

    n: int
    position: float

    @property
    def n_pairs(self) -> int:
        """Unordered pairs."""
        return self.n * (self.n - 1) // 2

    @property
    def ranks(self) -> list[int]:
        """Where the two values that it lies between are among unordered pairs."""
        return [int(self.position) // 2, min(int(self.position) + 1, 2 * self.n_pairs - 1) // 2]

    @property
    def sample_size(self) -> int:
        """Pairs to draw for a sample."""
        return min(max(_LEAST_SAMPLE, self.n * self.n // _SAMPLED), _MOST_SAMPLED)

    @property
    def n_expected(self) -> int:
        """Pairs in the window."""
        return int(self._share * self.n_pairs)

    @property
    def n_kept(self) -> int:
        """Values that a window keeps at most."""
        return min(self.n_expected, _MOST_KEPT)

    @property
    def _share(self) -> float:
        """Of all pairs, that of the window: six deviations of the rank in the sample to either side
        of the median's, which deviates most."""
        return 6 / float(np.sqrt(self.sample_size))

    def window(self, sample: Floats) -> tuple[float, float]:
        """Return numbers between which it almost surely lies, from a sorted sample (m,)."""
        first, last = (rank / self.n_pairs * sample.size for rank in self.ranks)
        slack = self._share / 2 * sample.size
        # A value takes up its share of the sample: of few pairs that is more than the slack.
        end = last + slack + sample.size / self.n_pairs
        low = sample[int(first - slack)] if first > slack else -np.inf
        high = sample[int(end)] if end < sample.size else np.inf
        rounding = 1e-5 if sample.dtype == np.float32 else 1e-12  # of products, not the sample
        return float(low - rounding * abs(low)), float(high + rounding * abs(high))

    def interpolated(self, values: list[float], sample: Floats) -> float:
        """Return it from the values at its ranks; without these from the sorted sample (m,)."""
        if not values:
            return float(sample[int(self.ranks[0] / self.n_pairs * sample.size)])
        return values[0] + (values[1] - values[0]) * (self.position - int(self.position))
