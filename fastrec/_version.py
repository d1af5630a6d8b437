"""The name under which fastrec is installed, and its version: the one place for both.

The distribution has another name than the package that is imported, because `fastrec` on the package index belongs to
another project.
"""

DISTRIBUTION = "fastrec-torch"

__version__ = "0.1.0"
