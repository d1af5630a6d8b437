"""What torch's functions are called, and what is known of each: one table for every engine and for the graph."""
