"""Changes to task vectors before they are merged, one short file each."""
