"""What torch's functions are called, and what holds for each of them: the same for every engine and for the graph."""
