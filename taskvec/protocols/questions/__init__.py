"""Questions that can be asked of a composition or of vectors, one short file each."""
