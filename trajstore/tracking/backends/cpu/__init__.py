"""Backend for parameters in the memory of a CPU: compiled loops, which Numba compiles.

Begin with `backend`, which prepares the arguments of the loops and calls them. `measuring` reads
gradients and parameters, `sketching` turns the folds of a step into its probes and its rotated
sketch, `coding` codes the numbers of the sketch, and `folding` holds their signs and buffers.
`compiling` compiles and caches kernels, and runs them in threads, `arguments` passes arguments to
them, `views` views memory as arrays in them, and `addresses` looks up the addresses of tensors. May
import what `trajstore.tracking.backends` may import.
"""
