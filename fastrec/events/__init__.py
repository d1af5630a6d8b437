"""What an event is: plain data about sites, passes, contexts and captures. Every other folder builds on it."""
