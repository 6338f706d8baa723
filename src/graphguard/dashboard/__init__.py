"""The dashboard: what is being spent now and by whom, and trips that wait for an answer. Extra `dashboard`."""

from graphguard.dashboard.app import dashboard
from graphguard.dashboard.asking import Answered, Asker, Question, Refused, Standing, Threads

__all__ = ["Answered", "Asker", "Question", "Refused", "Standing", "Threads", "dashboard"]
