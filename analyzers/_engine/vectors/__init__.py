"""What the engine does to vectors of all parameters, window by window and part by part.

`walk` decodes the anchors of successive windows, `fit` regresses target - anchor on the recorded
basis, and `project` estimates the products with the residual from the sketches, with variances from
`energies`.
"""
