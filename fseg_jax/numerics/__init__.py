"""Pure functions over arrays, without I/O: they import JAX, NumPy and the errors alone."""
