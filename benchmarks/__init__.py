"""What recording costs, measured side by side; README.md says how."""
