"""The questions asked of composed models, and the rules by which coefficients are chosen."""
