"""Gradient estimators for discrete latent variables: ``losses = estimator(logits, loss, context=None)``.

The contract is in :mod:`estimators.base`; every method is one file. ``check_estimator`` tests any estimator, a user's
own included, against exact enumeration.
"""

from estimators import distributions, functional
from estimators.arm import ARM
from estimators.arms import ARMS
from estimators.ars import ARS
from estimators.arsm import ARSM
from estimators.base import BlackBox, Estimator, MultiSample, Pathwise, Pending, ScoreFunction, per_example
from estimators.carms import CARMS
from estimators.categorical import gradient_only
from estimators.categorical_disarm import DisARMIW, DisARMStickBreaking, DisARMTree
from estimators.concrete import relaxed_log_prob, relaxed_log_sample
from estimators.contract import ContractError, check_estimator
from estimators.darn import DARN
from estimators.decoupled_straight_through import DecoupledStraightThrough
from estimators.disarm import DisARM
from estimators.discrete_vae import OverlappingExponential, SpikeAndExponential
from estimators.double_cv import DoubleCV
from estimators.exact import Exact
from estimators.gapped_straight_through import GappedStraightThrough
from estimators.gumbel_rao import GumbelRao
from estimators.gumbel_softmax import GumbelSoftmax
from estimators.identity_straight_through import IdentityStraightThrough
from estimators.indecater import IndeCateR
from estimators.look_up import category, look_up
from estimators.moments import GradientMoments, gradient_moments
from estimators.muprop import MuProp
from estimators.noise import noise_source, uniform
from estimators.nvil import NVIL
from estimators.rebar import REBAR
from estimators.reinforce import REINFORCE
from estimators.reinmax import ReinMax
from estimators.reinmax_cv import ReinMaxCV
from estimators.reinmax_rao import ReinMaxRao
from estimators.relax import RELAX
from estimators.rloo import RLOO
from estimators.rodeo import RODEO
from estimators.straight_through import StraightThrough
from estimators.unordered_set import UnorderedSet
from estimators.vimco import VIMCO

METHODS = (
    ARM,
    ARMS,
    ARS,
    ARSM,
    CARMS,
    DisARMIW,
    DisARMStickBreaking,
    DisARMTree,
    DARN,
    DecoupledStraightThrough,
    DisARM,
    OverlappingExponential,
    SpikeAndExponential,
    DoubleCV,
    Exact,
    GappedStraightThrough,
    GumbelRao,
    GumbelSoftmax,
    IdentityStraightThrough,
    IndeCateR,
    MuProp,
    NVIL,
    REBAR,
    REINFORCE,
    ReinMax,
    ReinMaxCV,
    ReinMaxRao,
    RELAX,
    RLOO,
    RODEO,
    StraightThrough,
    UnorderedSet,
    VIMCO,
)
"""Every method, for tests and tables: add yours here and it is held to the contract."""

__all__ = [
    "METHODS",
    "ARM",
    "ARMS",
    "ARS",
    "ARSM",
    "BlackBox",
    "CARMS",
    "ContractError",
    "DARN",
    "DecoupledStraightThrough",
    "DisARM",
    "DisARMIW",
    "DisARMStickBreaking",
    "DisARMTree",
    "DoubleCV",
    "Estimator",
    "Exact",
    "GradientMoments",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "IdentityStraightThrough",
    "IndeCateR",
    "MuProp",
    "MultiSample",
    "NVIL",
    "OverlappingExponential",
    "Pathwise",
    "Pending",
    "REBAR",
    "REINFORCE",
    "RELAX",
    "RLOO",
    "RODEO",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "ScoreFunction",
    "SpikeAndExponential",
    "StraightThrough",
    "UnorderedSet",
    "VIMCO",
    "category",
    "check_estimator",
    "distributions",
    "functional",
    "gradient_moments",
    "gradient_only",
    "look_up",
    "noise_source",
    "per_example",
    "relaxed_log_prob",
    "relaxed_log_sample",
    "uniform",
]
