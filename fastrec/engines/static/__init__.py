"""The static engine: the first passes are watched, later ones only where something is kept."""
