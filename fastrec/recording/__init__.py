"""Reading what was recorded: the same classes over RAM and over files."""
