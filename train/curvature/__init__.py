"""Curvature of the loss during training.

`hessian` computes Hessian-vector products and the largest eigenvalues of any loss;
`sharpness` applies `hessian` to a workload during training.

Imports `train.evaluation`, torch and SciPy. Start reading with `hessian`.
"""
