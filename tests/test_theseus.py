"""Theseus' mathematics against independent references in float64 (spec section 5, properties 1 to 15)."""

from __future__ import annotations
