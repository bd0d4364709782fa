"""The mathematics of PAVE: which output directions of a layer its task does not use, and how many to prune."""
