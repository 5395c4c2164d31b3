"""The oracle for values: NumPy in float64, by a route of its own."""
