"""The maths of sparsify-and-combine merges: task arithmetic, TIES, DARE, breadcrumbs and DELLA are points of it."""
