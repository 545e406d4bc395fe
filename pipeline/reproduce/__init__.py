"""A recorded run, run again from what was recorded, and compared."""
