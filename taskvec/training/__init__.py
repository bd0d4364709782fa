"""One loop for every parameterisation, objective and regulariser."""
