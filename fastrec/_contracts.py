"""What the parts promise each other: predicates, engines and sinks slot in by these protocols alone."""

from __future__ import annotations
