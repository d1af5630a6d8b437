"""One module per framework, which you import yourself: ``from fastrec.integrations.sb3 import RecordCallback``.

Nothing else in the package imports them, so that no framework is needed to record. Each tells a recorder what only the
framework knows, such as where a step, an episode or a phase ends, through the recorder's public methods.
"""
