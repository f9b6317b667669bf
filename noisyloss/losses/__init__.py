"""The losses, a family a file; what each makes public is its `__all__`."""
