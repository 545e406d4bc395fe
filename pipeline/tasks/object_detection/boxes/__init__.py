"""Images with boxes: how they are read, and where they come from."""
