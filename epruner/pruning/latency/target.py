"""Down to a share of the measured time: what was predicted is timed, and the target corrected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from epruner.pruning.report.records import Timing
from epruner.pruning.select.allocation import Choice, Counts

CLOSE, MISSED = 0.03, 0.05
SEARCHES = 4


def meet_measured(
    share: float, search: Callable[[float], Choice], time: Callable[[Counts], Timing]
) -> tuple[Choice, Timing]:
    """The choice whose measured share of the time is the nearest to what was asked.

    Parameters
    ----------
    share : float
        Of the whole network's time.
    search : callable
        From a share of the predicted time to a choice.
    time : callable
        From numbers of filters to the time that they take.

    Returns
    -------
    choice : Choice
        Its notes say if the share was missed by more than 5 %.
    timing : Timing
    """
    found: list[tuple[Choice, Timing]] = []
    asked = share
    for _ in range(SEARCHES):
        choice = search(asked)
        if any(choice.counts == other.counts for other, _ in found):
            break
        timing = time(choice.counts)
        found.append((choice, timing))
        if share == 1 or abs(timing.share / share - 1) <= CLOSE:
            break
        asked = min(asked * share / timing.share, 1.0)
    choice, timing = min(found, key=lambda each: abs(each[1].share - share))
    if share == 1 or abs(timing.share / share - 1) <= MISSED:
        return replace(choice, notes=()), timing
    note = (
        f"the budget is {share:.4g} of the time; the closest measured is {timing.share:.4g}"
        f"{choice.obstacle * (timing.share > share)}"
    )
    return replace(choice, notes=(note,)), timing
