"""Pages that open from disk, and the styles and scripts that they are made of."""
