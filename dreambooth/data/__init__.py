"""Reading photos: files, crops, captions, class images."""
