"""How fast the operators and training steps are here, beside stock JAX, Flax, Equinox, PyTorch."""
