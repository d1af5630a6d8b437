"""An open recorder: its options, its plan, its taps and its passes."""
