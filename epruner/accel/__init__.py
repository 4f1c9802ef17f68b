"""scikit-learn's affinity propagation, accelerated where it is.

`install` gives `sklearn.cluster.AffinityPropagation` another ``fit``, and so
`sklearn.cluster.affinity_propagation`, which calls it. The class stays scikit-learn's: what was
imported before is accelerated, too, and parameters, ``repr``, ``clone``, pickles and subclasses are
what they were. ``python -m epruner.accel script.py`` runs a script so, ``%load_ext epruner.accel``
a notebook.

The logger ``epruner.accel`` says, at level INFO, what ran where.
"""

from typing import Any

from sklearn.cluster import AffinityPropagation

from epruner.accel import fit
from epruner.accel.fit import TIES

__all__ = ["TIES", "install", "load_ipython_extension", "uninstall", "unload_ipython_extension"]


def install(ties: str | None = None) -> None:
    """Accelerate scikit-learn's affinity propagation in this process.

    Parameters
    ----------
    ties : {'auto', 'scikit-learn', 'fast'}, optional
        What breaks exact ties: the environment variable ``EPRUNER_TIES`` by default, or else
        'auto'. 'scikit-learn' adds the noise that scikit-learn adds, from the same random numbers,
        for its labels to the last tie; drawing it takes longer than all the rest. 'fast' breaks
        ties by a hash. 'auto' draws the noise for at most 10,000 points.

    Raises
    ------
    ValueError
        If `ties` is none of these.
    """
    fit.choose(ties)
    AffinityPropagation.fit = fit.fit


def uninstall() -> None:
    """Give scikit-learn's estimator its own ``fit`` again."""
    AffinityPropagation.fit = fit.THEIRS


def load_ipython_extension(ipython: Any) -> None:
    """``%load_ext epruner.accel``."""
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """``%unload_ext epruner.accel``."""
    uninstall()
