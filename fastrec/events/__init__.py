"""What an event is: plain data about sites, passes, contexts and captures, which every other folder builds on."""
