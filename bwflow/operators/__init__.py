"""Linear measurements of matrices: `operator(L, R)` is the vector of `<A_i, L R^T>`.

Operators have `shape` (`n`, `p`), `num_measurements` (`m`), `norms` (the `||A_i||`; in `Gaussian`
what they are near) and `adjoint(v)`, the matrix `sum_i v_i A_i` as a lineax operator. None but
`Dense` stores the `A_i`. `Gaussian` and `Cosine` are scaled such that `||A(M)||^2` is about
`||M||^2`. All are differentiable in the factors.

`Dense` and `Entries` take a matrix by its entries, too: `operator.of_matrix(M)`. For others that is
`operator(M, I)`.

`Dense`, `Entries` and `Cosine` have `squared_norm`, the largest eigenvalue of `A A^*`; the others
have none, since it would cost more than many gradients.

Raises
------
ValueError
    By constructors, if an argument has the wrong shape, is not finite, or an index is out of range.
    By calls, if the factors do not fit `shape` or each other, or `v` does not have `m` entries.
"""

from bwflow.operators._drawn import Cosine as Cosine
from bwflow.operators._drawn import Gaussian as Gaussian
from bwflow.operators._stored import Dense as Dense
from bwflow.operators._stored import Entries as Entries
from bwflow.operators._stored import RankOne as RankOne
from bwflow.operators._weighted import Weighted as Weighted
from bwflow.operators._weighted import measured_matrix as measured_matrix

__all__ = ["Cosine", "Dense", "Entries", "Gaussian", "RankOne", "Weighted", "measured_matrix"]
