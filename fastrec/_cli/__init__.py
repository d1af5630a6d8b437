"""The command line: ``fastrec``, or ``python -m fastrec``.

A command is a struct with a function that does it and returns the exit code (``_command.py``). The work itself is done
by functions of the library; a command turns its arguments into theirs and prints what they return.
"""

from fastrec._cli._main import main as main
