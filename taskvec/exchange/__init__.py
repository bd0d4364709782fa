"""Models and vectors in and out of a run: import, export, merges and transforms of what lies on disk."""
