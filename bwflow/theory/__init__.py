"""What is known of the dynamics: exact solutions, constants and bounds, to hold runs against."""

from bwflow.theory.assumptions import Assumptions as Assumptions
from bwflow.theory.assumptions import check_assumptions as check_assumptions
from bwflow.theory.bounds import late_rate as late_rate
from bwflow.theory.bounds import pl_constant as pl_constant
from bwflow.theory.bounds import published_rate as published_rate
from bwflow.theory.bounds import saddle_value as saddle_value
from bwflow.theory.bounds import sharp_rate as sharp_rate
from bwflow.theory.comparison import Comparison as Comparison
from bwflow.theory.comparison import compare as compare
from bwflow.theory.exact import aligned_flow as aligned_flow
from bwflow.theory.exact import frobenius_flow as frobenius_flow
from bwflow.theory.exact import linear_flow as linear_flow
from bwflow.theory.exact import rank_one_flow as rank_one_flow
from bwflow.theory.exact import scalar_unbalanced_flow as scalar_unbalanced_flow
from bwflow.theory.feedback import feedback_modes as feedback_modes
from bwflow.theory.feedback import sketch_limit as sketch_limit
from bwflow.theory.margins import convexity_constant as convexity_constant
from bwflow.theory.margins import margin as margin
from bwflow.theory.margins import published_margin as published_margin
from bwflow.theory.margins import trace_bound as trace_bound
from bwflow.theory.steps import StepSizes as StepSizes
from bwflow.theory.steps import descent_factor as descent_factor
from bwflow.theory.steps import practical_step_size as practical_step_size
from bwflow.theory.steps import published_step_sizes as published_step_sizes
from bwflow.theory.steps import stability_limit as stability_limit

__all__ = [
    "Assumptions",
    "Comparison",
    "StepSizes",
    "aligned_flow",
    "check_assumptions",
    "compare",
    "convexity_constant",
    "descent_factor",
    "feedback_modes",
    "frobenius_flow",
    "late_rate",
    "linear_flow",
    "margin",
    "pl_constant",
    "practical_step_size",
    "published_margin",
    "published_rate",
    "published_step_sizes",
    "rank_one_flow",
    "saddle_value",
    "scalar_unbalanced_flow",
    "sharp_rate",
    "sketch_limit",
    "stability_limit",
    "trace_bound",
]
