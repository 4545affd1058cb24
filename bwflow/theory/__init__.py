"""What is known of the dynamics: exact solutions, constants and bounds, to hold runs against."""

from bwflow.theory.exact import aligned_flow as aligned_flow
from bwflow.theory.exact import frobenius_flow as frobenius_flow
from bwflow.theory.exact import linear_flow as linear_flow
from bwflow.theory.exact import rank_one_flow as rank_one_flow
from bwflow.theory.exact import scalar_unbalanced_flow as scalar_unbalanced_flow
