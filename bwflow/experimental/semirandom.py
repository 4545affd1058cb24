"""Semi-random matrix sensing and completion: weights against an adversary who adds measurements.

Every measurement is right, `b_i = <A_i, M*>`, but only a part of the `A_i`, nobody knows which, is
random; the others were added by someone who has seen these. More information is no help to a
descent of `1/2 sum_i (<A_i, U U^T> - b_i)^2`: added measurements change its landscape, and give it
bad local minima (`sensing_problem` makes some). Weights that look at the
iterate, or for completion at the pattern of the observed entries, take that influence away.

The scheme, a reweighting oracle inside of steps that halve the error inside of restarts, is that of
Gao and Cheng (2023). Their pseudocode was not at hand: what stands here was derived anew, and what
is proved of it and what is not is said in `recover`.
"""

from bwflow.experimental._adversaries import completion_problem as completion_problem
from bwflow.experimental._adversaries import sensing_problem as sensing_problem
from bwflow.experimental._completion_weights import completion_weights as completion_weights
from bwflow.experimental._completion_weights import pattern_distance as pattern_distance
from bwflow.experimental._recovery import Recovery as Recovery
from bwflow.experimental._recovery import recover as recover

__all__ = [
    "Recovery",
    "completion_problem",
    "completion_weights",
    "pattern_distance",
    "recover",
    "sensing_problem",
]
