"""Sound files and damage to sounds, for tasks that hear."""
