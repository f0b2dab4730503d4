"""Curvature of the loss during training.

`hessian` computes Hessian-vector products and the largest eigenvalues of any loss;
`sharpness` applies it to a workload during its training.

Imports `train.evaluation`, torch and SciPy. Start reading with `hessian`.
"""
