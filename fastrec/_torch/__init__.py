"""All that leans on how torch works inside."""
