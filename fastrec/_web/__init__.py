"""The package's scripts and styles for pages that open in a browser."""
