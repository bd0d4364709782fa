"""Merges in which the vectors compete entry by entry: MagMax, SCE, PCB."""
