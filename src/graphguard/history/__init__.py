"""Time travel: every trip of a thread, replays, what another budget would have done, and going on with more.

The only modules that read checkpoints, through LangGraph's public methods alone.
"""

from graphguard.history.backtesting import abacktest, backtest
from graphguard.history.found import PastTrip, atrips, trips
from graphguard.history.outcomes import Backtest, Outcome
from graphguard.history.replaying import areplay, replay
from graphguard.history.steps import Step, asteps, steps
from graphguard.history.topping import atop_up, top_up

__all__ = [
    "Backtest",
    "Outcome",
    "PastTrip",
    "Step",
    "abacktest",
    "areplay",
    "asteps",
    "atop_up",
    "atrips",
    "backtest",
    "replay",
    "steps",
    "top_up",
    "trips",
]
