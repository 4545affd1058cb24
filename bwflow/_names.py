"""The names that a spec may use.

They are types, so that a spec is checked and the command offers its choices before jax is imported.
The suite holds them against the rooms that have what they stand for.
"""

from typing import Literal

Draw = Literal[
    "gaussian",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "orthogonal",
    "identity",
]
Start = Literal["balanced", "rebalanced", "near_target", "low_rank", Draw]
Quantity = Literal[
    "loss",
    "gap",
    "gradient_norm",
    "singular_values",
    "numerical_rank",
    "effective_rank",
    "imbalance",
    "alignment",
    "cosines",
    "covariance",
    "eigenvalue_errors",
    "residual",
    "distance_frobenius",
    "distance_bures",
]
Method = Literal["auto", "svd", "gram", "newton_schulz", "quadrature"]
Solver = Literal[
    "Tsit5",
    "Dopri5",
    "Dopri8",
    "Bosh3",
    "Heun",
    "Midpoint",
    "Ralston",
    "ImplicitEuler",
    "Kvaerno3",
    "Kvaerno4",
    "Kvaerno5",
    "RKC",
]
Optimizer = Literal[
    "sgd",
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "amsgrad",
    "deep_precgd",
    "fromage",
    "lamb",
    "lars",
    "lbfgs",
    "lion",
    "nadam",
    "nadamw",
    "novograd",
    "optimistic_gradient_descent",
    "radam",
    "rmsprop",
    "rprop",
    "sign_sgd",
    "sm3",
    "yogi",
]
