"""What pruning raises and warns of."""


class TraceError(RuntimeError):
    """The model could not be run or analysed; the message names the module at fault."""


class BudgetWarning(UserWarning):
    """A budget could not be met; the message says what was, and why."""


class RepairWarning(UserWarning):
    """A repair was left off or rests on too little data; the message says where and why."""
