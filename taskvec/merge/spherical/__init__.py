"""Merges on the sphere, all of them combinations whose coefficients follow from inner products."""
