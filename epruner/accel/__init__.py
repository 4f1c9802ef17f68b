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

    Examples
    --------
    >>> import sklearn.cluster
    >>> from epruner import accel
    >>> accel.install()
    >>> model = sklearn.cluster.AffinityPropagation(preference=-20.0)
    >>> model.fit([[0], [1], [2], [10]]).labels_.tolist()
    [0, 0, 0, 1]
    >>> accel.uninstall()
    """
    fit.choose(ties)
    AffinityPropagation.fit = fit.fit


def uninstall() -> None:
    """Give scikit-learn's estimator its own ``fit`` again.

    Examples
    --------
    >>> import sklearn.cluster
    >>> from epruner import accel
    >>> own = sklearn.cluster.AffinityPropagation.fit
    >>> accel.install()
    >>> accel.uninstall()
    >>> sklearn.cluster.AffinityPropagation.fit is own
    True
    """
    AffinityPropagation.fit = fit.THEIRS


def load_ipython_extension(ipython: Any) -> None:
    """Install the acceleration for ``%load_ext epruner.accel`` in a notebook.

    Parameters
    ----------
    ipython : InteractiveShell
        Not looked at.

    Examples
    --------
    >>> from epruner import accel
    >>> accel.load_ipython_extension(None)  # as %load_ext does
    >>> accel.unload_ipython_extension(None)
    """
    install()


def unload_ipython_extension(ipython: Any) -> None:
    """Take the acceleration back for ``%unload_ext epruner.accel`` in a notebook.

    Parameters
    ----------
    ipython : InteractiveShell
        Not looked at.

    Examples
    --------
    >>> from epruner import accel
    >>> accel.load_ipython_extension(None)
    >>> accel.unload_ipython_extension(None)  # as %unload_ext does
    """
    uninstall()
