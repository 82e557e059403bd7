"""Photos in: reading, cropping, captions, class images."""
