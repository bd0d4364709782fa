"""Task arithmetic and model merging: composable, exact, resumable experiments."""

__version__ = "0.1.0"
