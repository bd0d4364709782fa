"""Merges that sparsify each vector and combine what is left: TIES, DARE, breadcrumbs, DELLA."""
