"""Gradient estimators for discrete latent variables: ``losses = estimator(logits, loss, context=None)``.

The contract is in :mod:`estimators.base`; every method is one file. ``check_estimator`` tests any estimator, a user's
own included, against exact enumeration.
"""

from estimators.base import Estimator, Pathwise, ScoreFunction
from estimators.categorical import gradient_only
from estimators.check import ContractError, check_estimator
from estimators.exact import Exact
from estimators.gumbel_softmax import GumbelSoftmax
from estimators.noise import noise_source, uniform
from estimators.nvil import NVIL
from estimators.reinforce import REINFORCE
from estimators.straight_through import StraightThrough

METHODS = (Exact, REINFORCE, NVIL, StraightThrough, GumbelSoftmax)
"""Every method, for tests and tables: add yours here and it is held to the contract."""

__all__ = [
    "METHODS",
    "NVIL",
    "REINFORCE",
    "ContractError",
    "Estimator",
    "Exact",
    "GumbelSoftmax",
    "Pathwise",
    "ScoreFunction",
    "StraightThrough",
    "check_estimator",
    "gradient_only",
    "noise_source",
    "uniform",
]
