"""What layers are and do: converters between the rungs of the bias ladder, and measurements.

In `converters`, `fitted` (the nearest convolution), `receptive`, `equivariance` and `distance` (how
far attention looks).
"""
