"""The command line, one file per command."""

from fastrec._cli._main import main as main
