"""From a source to the prepared data set, and from there to batches."""
