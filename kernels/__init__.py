"""The oracle for time: Triton kernels."""
