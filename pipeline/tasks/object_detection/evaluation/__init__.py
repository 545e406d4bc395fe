"""What evaluation measures and draws of boxes."""
