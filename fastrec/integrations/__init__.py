"""One module per framework, imported by the user: ``from fastrec.integrations.sb3 import RecordCallback``."""
