"""Trying predicates on one pass without keeping a tensor.

``dry_run.py`` has the public function and its result; ``events.py`` sees what happens in the pass; ``decisions.py``
asks the predicates about it; ``report.py`` shows the result as a tree, a table and a picture.
"""
