"""What pruning raises and warns of."""


class TraceError(RuntimeError):
    """The model could not be run or analysed; the message names the module at fault.

    Examples
    --------
    >>> import epruner
    >>> from torch import nn
    >>> epruner.analyse(nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 4)), (1, 9))
    Traceback (most recent call last):
        ...
    epruner.pruning.errors.TraceError: ...
    """


class BudgetWarning(UserWarning):
    """A budget could not be met; the message says what was, and why.

    Examples
    --------
    As an error, where a budget has to be met:

    >>> import warnings
    >>> import epruner
    >>> from torch import nn
    >>> warnings.simplefilter("error", epruner.BudgetWarning)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.prune(model, (1, 8), macs=0.001)
    Traceback (most recent call last):
        ...
    epruner.pruning.errors.BudgetWarning: the budget is 0.001 of the network; the closest met is ...
    """


class RepairWarning(UserWarning):
    """A repair was left off or rests on too little data; the message says where and why.

    Examples
    --------
    >>> import warnings
    >>> import epruner, torch
    >>> from torch import nn
    >>> warnings.simplefilter("error", epruner.RepairWarning)
    >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    >>> epruner.prune(model, (1, 8), macs=0.5, calibrate=torch.randn(8, 8))
    Traceback (most recent call last):
        ...
    epruner.pruning.errors.RepairWarning: too few calibration inputs: ...
    """
