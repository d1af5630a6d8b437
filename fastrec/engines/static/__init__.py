"""The static engine: the first passes run eagerly, later ones only touch the module calls where something is kept."""
