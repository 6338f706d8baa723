"""Budgets around LangSmith: what it records is stopped here before it is spent."""

from graphguard.langsmith.ceilings import Calibration, Request, calibrate, plateau_noise, requests_of
from graphguard.langsmith.errors import AgentBudgetError
from graphguard.langsmith.evaluation import aguarded_evaluate, guarded_evaluate
from graphguard.langsmith.feedback import FeedbackLoopGuard
from graphguard.langsmith.functions import guarded_traceable
from graphguard.langsmith.iterations import IterationState, Verdict
from graphguard.langsmith.loops import LoopResult, LoopState, ascore_loop, score_graph, score_loop
from graphguard.langsmith.observed import repeated_scores, requests_in_langsmith
from graphguard.langsmith.pilots import apilot, pilot
from graphguard.langsmith.prompts import CachedHubPrompt
from graphguard.langsmith.recursion import RecursiveTraceGuard
from graphguard.langsmith.results import EvalResults
from graphguard.langsmith.sessions import session_budget
from graphguard.langsmith.spec import EvalBudgetError, EvalSpec
from graphguard.langsmith.volume import AgentVolume, CappedClient

__all__ = [
    "AgentBudgetError",
    "AgentVolume",
    "CachedHubPrompt",
    "Calibration",
    "CappedClient",
    "EvalBudgetError",
    "EvalResults",
    "EvalSpec",
    "FeedbackLoopGuard",
    "IterationState",
    "LoopResult",
    "LoopState",
    "RecursiveTraceGuard",
    "Request",
    "Verdict",
    "aguarded_evaluate",
    "apilot",
    "ascore_loop",
    "calibrate",
    "guarded_evaluate",
    "guarded_traceable",
    "pilot",
    "plateau_noise",
    "repeated_scores",
    "requests_in_langsmith",
    "requests_of",
    "score_graph",
    "score_loop",
    "session_budget",
]
