"""Merges of weight matrices through their singular vectors: TSV, Iso, KnOTS, CART, WUDI."""
