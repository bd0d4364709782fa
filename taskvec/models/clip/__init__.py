"""CLIP: any plain open_clip ViT, its image tower in the canonical layout, its text tower the writer of heads."""
