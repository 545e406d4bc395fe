"""Files of images: what several tasks read and write."""
